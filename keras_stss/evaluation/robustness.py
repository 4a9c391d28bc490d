"""How much of its accuracy a model keeps on damaged clips: tables, and curves of several models in one picture."""

import csv
import warnings

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from keras_stss.evaluation.metrics import is_among_top, summarize
from keras_stss.evaluation.statistics import bootstrap_interval
from keras_stss.evaluation.tables import columns

_FIGURES = ("top1", "low", "high", "relative", "mean_class", "loss", "clips")
_COLUMNS = 5  # of the picture


def figures_of(scores, classes, clean=None):
    """Figures of one set of scores.

    Args:
        scores: :class:`keras_stss.evaluation.scores.Scores`.
        classes: K.
        clean: figures of the clips as they are (default: these are they).

    Returns:
        Dictionary: top1, its bootstrap interval low and high, mean_class, loss, clips, and relative, top1 as a share of
        that on clean clips (None where that is 0).
    """
    logits = np.asarray(scores.logits, np.float64)
    found = summarize(logits, scores.label, classes)
    low, high = bootstrap_interval(is_among_top(logits, scores.label, 1))
    base = clean["top1"] if clean else found["top1"]
    return {
        "top1": found["top1"],
        "low": low,
        "high": high,
        "relative": found["top1"] / base if base else None,
        "mean_class": found["mean_class"],
        "loss": found["loss"],
        "clips": len(logits),
    }


def with_means(run):
    """A run's figures with the means of its relative accuracies.

    Args:
        run: {"run", "clean": figures, "corruptions": {name: [{"severity", figures…}]}}.

    Returns:
        The same with "relative", {name: mean over severities}, and "mean_relative", their mean.
    """
    relative = {name: _mean([row["relative"] for row in rows]) for name, rows in run["corruptions"].items()}
    return run | {"relative": relative, "mean_relative": _mean(list(relative.values()))}


def robustness_lines(runs):
    """A table of relative accuracies: for each corruption a line a run, and the means."""
    severities = sorted({row["severity"] for run in runs for rows in run["corruptions"].values() for row in rows})
    lines = [
        ["clean clips (top-1)", run["run"], *("" for _ in severities), f"{run['clean']['top1']:.1%}"] for run in runs
    ]
    for name in runs[0]["corruptions"]:
        for run in runs:
            found = {row["severity"]: _share(row["relative"]) for row in run["corruptions"][name]}
            cells = [found.get(severity, "") for severity in severities]
            lines.append([name, run["run"], *cells, _share(run["relative"][name])])
    lines += [["all", run["run"], *("" for _ in severities), _share(run["mean_relative"])] for run in runs]
    yield "accuracy as a share of that on clean clips, by severity"
    yield from columns(["corruption", "run", *map(str, severities), "mean"], lines)


def save_robustness_csv(path, runs):
    """Writes a CSV file: a line for each run, corruption and severity; severity 0 are the clean clips."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "corruption", "severity", *_FIGURES])
        for run in runs:
            writer.writerow([run["run"], "clean", 0, *(run["clean"][key] for key in _FIGURES)])
            for name, rows in run["corruptions"].items():
                for row in rows:
                    writer.writerow([run["run"], name, row["severity"], *(row[key] for key in _FIGURES)])


def draw_robustness(path, runs):
    """Draws relative accuracy over severity as PNG: a panel for each corruption, a curve with its interval a run."""
    names = list(runs[0]["corruptions"])
    across = min(_COLUMNS, len(names))
    down = -(-len(names) // across)
    # Room above for the legend, in inches.
    head = 0.3 + 0.22 * len(runs)
    drawn = Figure(figsize=(max(2.6 * across, 5), 2.1 * down + head), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(drawn)
    panels = drawn.subplots(down, across, squeeze=False, sharey=True)
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    for name, panel in zip(names, panels.flat):
        for number, run in enumerate(runs):
            _curve(panel, run, name, f"C{number % 10}")
        panel.set_title(name.replace("_", " "), fontsize=9, loc="left")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        panel.tick_params(labelsize=8)
    drawn.supylabel("accuracy as a share of that on clean clips", fontsize=9)
    drawn.supxlabel("severity", fontsize=9)
    handles = panels.flat[0].get_legend_handles_labels()
    for text in drawn.legend(*handles, loc="outside upper left", frameon=False, fontsize=9).get_texts():
        text.set_parse_math(False)  # dollars in a folder's name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font does not have are shown as boxes
        drawn.savefig(path, format="png")


def _curve(panel, run, name, color):
    base = run["clean"]["top1"] or np.nan
    rows = [{"severity": 0, **run["clean"]}, *run["corruptions"][name]]
    places = [row["severity"] for row in rows]
    share = [row["top1"] / base for row in rows]
    band = ([row[key] / base for row in rows] for key in ("low", "high"))
    label = f"{run['clean']['top1']:.1%} on clean clips: {run['run']}"  # one that begins with _ would be left out
    panel.plot(places, share, color=color, marker="o", markersize=3, linewidth=1.4, label=label)
    panel.fill_between(places, *band, color=color, alpha=0.12, linewidth=0)


def _mean(values):
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _share(value):
    return "-" if value is None else f"{value:.1%}"
