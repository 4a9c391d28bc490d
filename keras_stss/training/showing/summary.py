"""A run at a glance: summary.png, from metrics.jsonl alone."""

import json
import logging
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from keras_stss.training.saving.files import replacing
from keras_stss.training.showing import drawing

log = logging.getLogger(__name__)

_TRAIN, _VALIDATION, _OTHER = "#1f6fb2", "#d2691e", "#6b6b6b"


def plot_run(folder):
    """Draws loss, top-1, learning rate and throughput over the epochs.

    Args:
        folder: of a run, or any that holds a metrics.jsonl.

    Returns:
        Path of summary.png in it; None where no epoch has ended yet, or where it cannot be drawn, which ends no run.
    """
    folder = Path(folder)
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return _plot(folder, [json.loads(line) for line in lines]) if lines else None
    except Exception as error:
        log.warning("%s has no summary.png: %s: %s", folder, type(error).__name__, error)
        return None


def _plot(folder, rows):
    drawn = drawing.figure(1200, 800)
    (loss, top1), (rate, speed) = drawn.subplots(2, 2)
    _curves(loss, rows, "loss", {"train_loss": ("training", _TRAIN), "val_loss": ("validation", _VALIDATION)})
    _curves(top1, rows, "top-1", {"train_top1": ("training", _TRAIN), "val_top1": ("validation", _VALIDATION)})
    _percent(top1)
    _mark_best(top1, rows)
    top1.set_ylim(bottom=0)
    _curves(rate, rows, "learning rate", {"learning_rate": ("", _TRAIN)})
    rate.set_ylim(0, 1.05 * max(row["learning_rate"] for row in rows) or 1)
    _curves(speed, rows, "clips/s in training", {"clips_per_second": ("clips/s", _TRAIN)})
    speed.set_ylim(0, 1.1 * max(row["clips_per_second"] for row in rows) or 1)
    _add_waiting(speed, rows)
    for axes in (loss, top1, rate, speed):
        axes.set_xlabel("epoch", fontsize=9)
        axes.set_xlim(rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    drawn.suptitle(_title(folder, rows), fontsize=11, parse_math=False)
    drawn.tight_layout(rect=(0, 0, 1, 0.98))
    path = folder / "summary.png"
    with replacing(path) as unfinished:
        drawn.savefig(unfinished)
    return path


def _series(rows, key):
    """(epochs, values) of those rows that have it."""
    found = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _curves(axes, rows, title, curves):
    """``curves``: {key: (name in the legend, colour)}."""
    for key, (name, color) in curves.items():
        epochs, values = _series(rows, key)
        if epochs:
            # A line through one or two points alone is easily overlooked.
            marker = "o" if len(epochs) <= 30 else None
            axes.plot(epochs, values, color=color, label=name, marker=marker, markersize=3.5, linewidth=1.6)
    axes.set_title(title, fontsize=10, loc="left")
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=9)


def _mark_best(axes, rows):
    """Around the point of the epoch that best.keras is of."""
    best = rows[-1].get("best_epoch")
    for row in rows:
        if row["epoch"] == best and row.get("val_top1") is not None:
            axes.plot(best, row["val_top1"], "o", color="none", markeredgecolor=_VALIDATION, markersize=10)


def _add_waiting(axes, rows):
    epochs, values = _series(rows, "wait_share")
    if not epochs:
        return
    waiting = axes.twinx()
    waiting.bar(epochs, values, width=0.6, color=_OTHER, alpha=0.35)
    waiting.set_ylim(0, 1)
    waiting.set_ylabel("share of the time spent waiting for data (bars)", fontsize=9, color=_OTHER)
    waiting.spines[["top"]].set_visible(False)
    _percent(waiting)


def _percent(axes):
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _title(folder, rows):
    last = rows[-1]
    text = f"{folder.resolve().name}: {last['epoch']} epoch{'s' * (last['epoch'] > 1)}, {last['step']} steps"
    best = next((row for row in rows if row["epoch"] == last.get("best_epoch")), {})
    if best.get("val_top1") is not None:
        text += f"; best.keras is of epoch {best['epoch']}: validation top-1 {best['val_top1']:.1%}"
    return text
