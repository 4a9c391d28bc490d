"""What :mod:`keras_stss.data.prepare` found, as text, JSON and one HTML page that needs no other file."""

import base64
import html
import json
import os
from pathlib import Path

_SHOWN = 200  # places listed on the page; the JSON file has all

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse }} td, th {{ padding: .15em .8em .15em 0; text-align: left; vertical-align: top }}
td.n {{ text-align: right; font-variant-numeric: tabular-nums }}
.bar {{ background: #47a; height: .8em; display: inline-block }} .bad {{ color: #a20 }}
.strip img {{ height: 108px; margin: 0 2px 2px 0 }} .strip p {{ margin: .8em 0 .2em }}
.histogram {{ display: flex; align-items: flex-end; height: 90px; max-width: 40em }}
.histogram i {{ background: #47a; flex: 1; margin-right: 1px }} li {{ overflow-wrap: anywhere }}
</style></head><body>
{body}
</body></html>
"""


def write_report(report, strips, folder):
    """Writes ``report.json`` and ``report.html``; returns their paths.

    Args:
        report, strips: of :func:`keras_stss.data.prepare.check_data_set`.
        folder: made where it is not there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "report.json", folder / "report.html"
    for path, text in zip(paths, (json.dumps(report, indent=1) + "\n", page(report, strips)), strict=True):
        part = path.with_name(f".{path.name}.{os.getpid()}")
        # File names may hold what is no text.
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(part, path)
    return paths


def summary_lines(report):
    """The report in a few lines of plain text."""
    clips, labels = report["clips"], report["labels"]
    lines = [
        f"{clips['train']} training and {clips['validation']} validation clips of {len(labels)} classes",
        *(f"note: {text}" for text in report["warnings"]),
        f"{len(report['missing'])} missing, {len(report['unreadable'])} unreadable",
    ]
    for name, unit in (("frames", ""), ("seconds", " s")):
        if figures := report[name]:
            lines.append(
                f"{name} a clip: {figures['least']:.4g} to {figures['most']:.4g}{unit}, median {figures['median']:.4g}"
            )
    for name in ("sizes", "rates", "codecs"):
        if report[name]:
            lines.append(f"{name}: " + ", ".join(f"{text} ({count})" for text, count in list(report[name].items())[:5]))
    if found := report["duplicates"]:
        same = sum(len(group) - 1 for group in found["same_content"])
        lines.append(f"{same} clips have the content of another one, {len(found['in_both_lists'])} are in both lists")
    if report["fewer_frames_than_listed"]:
        lines.append(f"{len(report['fewer_frames_than_listed'])} folders hold fewer frames than their list says")
    lines += [f"  {place}: {reason}" for place, reason in list(report["unreadable"].items())[:5]]
    lines += [f"  {place}: missing" for place in report["missing"][:5]]
    return lines


def page(report, strips):
    """The HTML page."""
    title = f"{report['format']} in {report['root']}"
    parts = [f"<h1>{_text(title)}</h1>", _overview(report)]
    parts += [f"<p class=bad>{_text(text)}</p>" for text in report["warnings"]]
    if strips:
        parts.append("<h2>Sample clips</h2>")
        parts += [_strip(*strip) for strip in strips]
    for name, unit in (("frames", "frames"), ("seconds", "seconds")):
        if report[name]:
            parts.append(f"<h2>Length in {unit}</h2>" + _histogram(report[name]))
    parts.append(_problems(report))
    parts.append("<h2>Classes</h2>" + _classes(report["labels"]))
    return _PAGE.format(title=_text(title), body="\n".join(parts))


def _overview(report):
    rows = [
        ("training clips", report["clips"]["train"]),
        ("validation clips", report["clips"]["validation"]),
        ("classes", len(report["labels"])),
        ("missing", len(report["missing"])),
        ("unreadable", len(report["unreadable"])),
        ("looked at", {"files": "files", "packets": "header, packets, first frame", "frames": "every frame"}),
    ]
    rows[-1] = (rows[-1][0], rows[-1][1][report["depth"]])
    for name in ("sizes", "rates", "codecs"):
        if report[name]:
            rows.append((name, ", ".join(f"{text}: {count}" for text, count in report[name].items())))
    return "<table>" + "".join(f"<tr><th>{name}<td>{_text(value)}" for name, value in rows) + "</table>"


def _strip(place, label, pictures):
    images = "".join(
        f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}">' for picture in pictures
    )
    return f"<div class=strip><p><b>{_text(label)}</b> {_text(place)}</p>{images}</div>"


def _histogram(figures):
    counts = figures["histogram"]["counts"]
    bars = "".join(f'<i style="height:{100 * count / max(counts):.1f}%" title="{count}"></i>' for count in counts)
    return (
        f"<div class=histogram>{bars}</div><p>{figures['least']:.4g} to {figures['most']:.4g}, "
        f"median {figures['median']:.4g}, mean {figures['mean']:.4g}, {figures['total']:.6g} in all</p>"
    )


def _problems(report):
    lists = [
        ("Unreadable", [f"{place}: {reason}" for place, reason in report["unreadable"].items()]),
        ("Missing", report["missing"]),
        ("Fewer frames than listed", report["fewer_frames_than_listed"]),
    ]
    if found := report["duplicates"]:
        lists.append(("Same content", ["  =  ".join(group) for group in found["same_content"]]))
        lists.append(("In both lists", found["in_both_lists"]))
    return "".join(_list(title, texts) for title, texts in lists if texts)


def _list(title, texts):
    rest = f"<li>and {len(texts) - _SHOWN} more, in report.json" if len(texts) > _SHOWN else ""
    return (
        f"<h2 class=bad>{title} ({len(texts)})</h2><ul>"
        + "".join(f"<li>{_text(text)}" for text in texts[:_SHOWN])
        + f"{rest}</ul>"
    )


def _classes(labels):
    most = max([row["train"] for row in labels] + [1])
    rows = "".join(
        f"<tr><td class=n>{number}<td>{_text(row['label'])}<td class=n>{row['train']}<td class=n>{row['validation']}"
        f'<td><span class=bar style="width:{12 * row["train"] / most:.2f}em"></span>'
        for number, row in enumerate(labels)
    )
    return f"<table><tr><th><th>label<th>training<th>validation<th>{rows}</table>"


def _text(value):
    return html.escape(str(value))
