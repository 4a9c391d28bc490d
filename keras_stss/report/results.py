"""The figures of the page: curves of training, protocols, comparisons, calibration, robustness."""

import math

from keras_stss.data.annotations import DataError
from keras_stss.evaluation.figures import comparisons
from keras_stss.pages import beside, command, element, escape, gallery, pairs, section, table
from keras_stss.report.charts import Curve, chart, color_of, swatch


def main_protocol(runs):
    """The protocol that most of the page is about: the first that all runs with figures have; else None."""
    evaluated = [run for run in runs if run.evaluations]
    common = [name for name in (evaluated[0].evaluations if evaluated else ()) if _all_have(evaluated, name)]
    return common[0] if common else next((name for run in evaluated for name in run.evaluations), None)


def _all_have(runs, name):
    return all(name in run.evaluations for run in runs)


def named(runs, number):
    """A run's name behind the dot of its colour, which one run alone does not need."""
    return escape([swatch(number), runs[number].name]) if len(runs) > 1 else escape(runs[number].name)


def one_line(run, protocol):
    """What came out, in a sentence."""
    figures = run.evaluations.get(protocol)
    if figures:
        low, high = figures["intervals"]["top1"]
        return (
            f"top-1 {figures['top1']:.1%} [{100 * low:.1f}, {100 * high:.1f}], top-5 {figures['top5']:.1%}, "
            f"mean class {figures['mean_class']:.1%} on {figures['clips']:,} clips ({protocol})"
        )
    best = best_row(run)
    if best:
        return f"top-1 {best['val_top1']:.1%} on the validation clips of epoch {best['epoch']}, not evaluated yet"
    done = f"{run.rows[-1]['epoch']} epochs trained, " if run.rows else ""
    return f"{done}not evaluated yet"


def best_row(run):
    """The line of metrics.jsonl of the best epoch, or None."""
    best = run.rows[-1].get("best_epoch") if run.rows else None
    return next((row for row in run.rows if row["epoch"] == best and is_number(row.get("val_top1"))), None)


def is_number(value):
    """Whether a value of metrics.jsonl is one to draw."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def overview(runs, protocol):
    """Which runs, and what came out of each."""
    if len(runs) == 1:
        return element("p", one_line(runs[0], protocol), class_="lead")
    lines = [element("li", named(runs, number), " ", _soft(one_line(run, protocol))) for number, run in enumerate(runs)]
    return element("ul", *lines, class_="runs")


def _soft(text):
    return element("span", text, class_="soft")


def curves(runs):
    """Loss, top-1 and learning rate over the epochs; None where no epoch has ended."""
    if not any(run.rows for run in runs):
        return None
    several = len(runs) > 1
    note = "Solid: validation clips; dashed: training clips, as augmented." if several else ""
    charts = [
        _chart_of(runs, "loss", ("train_loss", "val_loss")),
        _chart_of(runs, "top-1", ("train_top1", "val_top1"), form="{:.0%}", y_range=(0, None), marks_best=True),
        _chart_of(runs, "learning rate", ("learning_rate",), y_range=(0, None)),
    ]
    if any(best_row(run) for run in runs):
        note += (" " if note else "") + "A ring is the epoch that best.keras is of."
    legend = [] if several else [element("p", _key(0, "validation"), _key(1, "training"), class_="legend")]
    return section("Training", *legend, gallery(*filter(None, charts), least="19rem"), note=note)


def _key(number, text):
    return element("span", swatch(number), text)


def _chart_of(runs, title, keys, marks_best=False, **given):
    several, found = len(runs) > 1, []
    for number, run in enumerate(runs):
        best = best_row(run) if marks_best else None
        for key in keys:
            points = [(row["epoch"], row[key]) for row in run.rows if is_number(row.get(key))]
            is_training = key.startswith("train_")
            color = color_of(number if several else int(is_training))
            name = run.name if several else {True: "training", False: "validation"}[is_training]
            ring = best["epoch"] if best and not is_training else None
            if points:
                found.append(Curve(points, color, name, is_dashed=is_training and several, ring=ring))
    return chart(title, found, "epoch", whole_x=True, **given) if found else None


def protocols(runs):
    """A line for each protocol and run, with intervals; None where nothing was evaluated."""
    if not any(run.evaluations for run in runs):
        return None
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.evaluations):
        for number, run in enumerate(runs):
            if figures := run.evaluations.get(name):
                shown = [_percent(figures, key) for key in ("top1", "top5", "mean_class")]
                ece = f"{figures['calibration']['ece']:.1%}"
                rows.append([name, named(runs, number), *shown, f"{figures['loss']:.3f}", ece, f"{figures['clips']:,}"])
    heads = ["protocol", "run", "top-1", "top-5", "mean class", "loss", "calibration error", "clips"]
    if len(runs) == 1:
        heads.pop(1)
        rows = [[row[0], *row[2:]] for row in rows]
    level = next(figures for run in runs for figures in run.evaluations.values()).get("level", 0.95)
    note = f"In brackets: {level:.0%} bootstrap intervals over clips."
    left = sorted(
        {(path, why) for run in runs for each in run.evaluations.values() for path, why in each["unreadable"].items()}
    )
    return section("Results", table(heads, rows, sortable=len(rows) > 1), *_left_out(left), *_compared(runs), note=note)


def _left_out(left):
    shown = [element("li", f"{path}: {why}") for path, why in left[:20]]
    rest = [element("li", f"and {len(left) - 20:,} more")] if len(left) > 20 else []
    return [element("p", f"{len(left):,} clips could not be read:"), element("ul", *shown, *rest)] if left else []


def _percent(figures, key):
    low, high = figures["intervals"][key]
    interval = element("span", f"[{100 * low:.1f}, {100 * high:.1f}]", class_="soft")
    return escape([f"{figures[key]:.1%}", " ", interval])


def _compared(runs):
    """Each run against the first one, by each protocol that both have scores of."""
    rows, lines = [], []
    for name in dict.fromkeys(name for run in runs for name in run.scores):
        having = [(number, run) for number, run in enumerate(runs) if name in run.scores]
        for number, run in having[1:]:
            first_number, first = having[0]
            try:
                (found,) = comparisons([(first.name, first.scores[name]), (run.name, run.scores[name])])
            except DataError as error:
                lines.append(element("p", f"{name}: {error}"))
                continue
            rows.append(
                [
                    name, named(runs, number), named(runs, first_number), _points(found["difference"]),
                    f"{_points(found['low'])} to {_points(found['high'])}",
                    found["only_first"], found["only_second"], f"{found['p_value']:.2g}",
                ]
            )  # fmt: skip
    if not rows:
        return lines
    heads = ["protocol", "run", "against", "top-1, points", "interval", "only it", "only the other", "p"]
    note = "Clips that one of the two alone has right decide: p is of McNemar's exact test."
    return [
        element("h3", "Run against run, on the same clips"),
        element("p", note, class_="note"),
        table(heads, rows),
        *lines,
    ]


def _points(share):
    return f"{100 * share:+.1f}".replace("-", "−")


def calibration(runs, protocol):
    """How often the model is right where it says that it is so sure."""
    having = [(number, run) for number, run in enumerate(runs) if protocol in run.evaluations]
    if not having:
        return None
    found, rows = [], []
    for number, run in having:
        bins, total = run.evaluations[protocol]["calibration"]["bins"], run.evaluations[protocol]["clips"]
        points = [(row["confidence"], row["accuracy"]) for row in bins]
        found.append(Curve(points, color_of(number), run.name, areas=[row["clips"] / total for row in bins]))
        sure = sum(row["confidence"] * row["clips"] for row in bins) / total
        right = sum(row["accuracy"] * row["clips"] for row in bins) / total
        rows.append(
            (named(runs, number), _calibration_text(run.evaluations[protocol]["calibration"]["ece"], sure, right))
        )
    drawn = chart(
        "share that is right",
        found,
        "probability of the predicted class",
        form="{:.0%}",
        x_form="{:.0%}",
        x_range=(0, 1),
        y_range=(0, 1),
        diagonal=True,
    )
    said = pairs(rows) if len(runs) > 1 else element("p", rows[0][1])
    note = "On the dashed line a probability can be taken at its word; a larger dot stands for more clips."
    return section("Calibration", beside(drawn, said), note=note)


def _calibration_text(error, sure, right):
    tendency = "surer than right" if sure > right else "right more often than sure"
    return f"expected calibration error {error:.1%}; mean probability {sure:.1%}, right {right:.1%}: {tendency}"


def robustness(runs):
    """Accuracy on damaged clips as a share of that on clean ones: curves for each corruption, and the means."""
    having = [(number, run, *run.robustness) for number, run in enumerate(runs) if run.robustness]
    if not having:
        return None
    names = list(dict.fromkeys(name for _, _, figures, _ in having for name in figures["corruptions"]))
    curves = {name: _corruption(name, having) for name in names}
    highest = max((high for found in curves.values() for each in found for *_, high in each.band), default=1.0)
    given = {"form": "{:.0%}", "y_range": (0, max(highest, 1.0)), "whole_x": True}
    charts = [chart(name.replace("_", " "), found, "severity", **given) for name, found in curves.items()]
    rows = [
        ["clean clips (top-1)", *(f"{figures['clean']['top1']:.1%}" for _, _, figures, _ in having)],
        ["mean of all", *(_share(figures["mean_relative"]) for _, _, figures, _ in having)],
        *([name.replace("_", " "), *(_share(each[2]["relative"].get(name)) for each in having)] for name in names),
    ]
    heads = ["", *(named(runs, number) for number, *_ in having)]
    by = ", ".join(sorted({protocol for *_, protocol in having}))
    note = f"Top-1 on damaged clips as a share of that on clean ones, by severity, with its interval; by {by}."
    return section("Robustness", gallery(*charts, least="14rem"), table(heads, rows), note=note)


def _corruption(name, having):
    """A curve for each run."""
    found = []
    for number, run, figures, _ in having:
        clean, rows = figures["clean"]["top1"], figures["corruptions"].get(name, ())
        if clean and rows:
            points = [(0, 1.0), *((row["severity"], row["top1"] / clean) for row in rows)]
            band = [(0, 1.0, 1.0), *((row["severity"], row["low"] / clean, row["high"] / clean) for row in rows)]
            found.append(Curve(points, color_of(number), run.name, band=band))
    return found


def _share(value):
    return "–" if value is None else f"{value:.1%}"


def missing(runs):
    """Lines on what is not on the page and what makes it: list of (run, text, command)."""
    lines = []
    for run in runs:
        if not run.has_model:
            lines.append((run.name, "no best.keras yet, so it cannot be evaluated", "keras-stss train …"))
            continue
        if not run.evaluations:
            what = "results, classes, confusion, calibration and clips"
            lines.append((run.name, what, f"keras-stss evaluate {run.folder} --protocol 1x1"))
        elif not run.scores:
            lines.append(
                (run.name, "clips with predictions, paired tests", f"keras-stss evaluate {run.folder} --protocol 1x1")
            )
        if not run.robustness:
            lines.append((run.name, "robustness", f"keras-stss robustness {run.folder}"))
    return lines


def missing_section(runs):
    """The section of :func:`missing` and of the runs' notes; None where there is nothing to say."""
    rows = [[name, text, command(line)] for name, text, line in missing(runs)]
    notes = [element("p", note) for run in runs for note in run.notes]
    if not rows and not notes:
        return None
    found = [table(["run", "not on this page", "what makes it"], rows)] if rows else []
    return section("What is missing", *found, *notes)
