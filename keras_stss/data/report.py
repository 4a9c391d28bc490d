"""What :mod:`keras_stss.data.prepare` found, as text, JSON and one HTML page that needs no other file."""

import json
import os
from pathlib import Path

from keras_stss import pages

_SHOWN = 200  # places listed on the page; the JSON file has all
_STYLE = """
.bar { background: var(--c0); height: .8em; display: inline-block }
.strip img { height: 108px; display: inline-block; margin: 0 2px 2px 0 }
.histogram { display: flex; align-items: flex-end; height: 90px; max-width: 40em }
.histogram i { background: var(--c0); flex: 1; margin-right: 1px }
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
    histograms = [
        pages.section(f"Length in {unit}", *_histogram(report[name]))
        for name, unit in (("frames", "frames"), ("seconds", "seconds"))
        if report[name]
    ]
    samples = [pages.section("Sample clips", *(_strip(*strip) for strip in strips))] if strips else []
    sections = [_overview(report), *samples, *histograms, *_problems(report), _classes(report["labels"])]
    return pages.page(f"{report['format']} in {report['root']}", sections, style=_STYLE, contents=False)


def _overview(report):
    looked_at = {"files": "files", "packets": "header, packets, first frame", "frames": "every frame"}
    rows = [
        ("training clips", report["clips"]["train"]),
        ("validation clips", report["clips"]["validation"]),
        ("classes", len(report["labels"])),
        ("missing", len(report["missing"])),
        ("unreadable", len(report["unreadable"])),
        ("looked at", looked_at[report["depth"]]),
    ]
    for name in ("sizes", "rates", "codecs"):
        if report[name]:
            rows.append((name, ", ".join(f"{text}: {count}" for text, count in report[name].items())))
    warnings = [pages.element("p", text, class_="bad") for text in report["warnings"]]
    return pages.section("Overview", pages.pairs(rows), *warnings)


def _strip(place, label, pictures):
    images = [pages.element("img", alt="", src=pages.data_uri(picture)) for picture in pictures]
    caption = pages.element("p", pages.element("b", label), f" {place}")
    return pages.element("div", caption, *images, class_="strip")


def _histogram(figures):
    counts = figures["histogram"]["counts"]
    bars = [pages.element("i", style=f"height: {100 * count / max(counts):.1f}%", title=count) for count in counts]
    yield pages.element("div", *bars, class_="histogram")
    yield (
        f"{figures['least']:.4g} to {figures['most']:.4g}, median {figures['median']:.4g}, mean {figures['mean']:.4g}, "
        f"{figures['total']:.6g} in all"
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
    return [_list(title, texts) for title, texts in lists if texts]


def _list(title, texts):
    rest = [f"and {len(texts) - _SHOWN} more, in report.json"] if len(texts) > _SHOWN else []
    lines = [pages.element("li", text) for text in [*texts[:_SHOWN], *rest]]
    return pages.section(f"{title} ({len(texts)})", pages.element("ul", *lines))


def _classes(labels):
    most = max([row["train"] for row in labels] + [1])
    rows = [
        [number, row["label"], row["train"], row["validation"], _bar(row["train"] / most)]
        for number, row in enumerate(labels)
    ]
    return pages.section("Classes", pages.table(["", "label", "training", "validation", ""], rows))


def _bar(share):
    return pages.element("span", class_="bar", style=f"width: {12 * share:.2f}em")
