"""All figures of scored clips, and the comparison of several models, as dictionaries for JSON."""

import numpy as np

from keras_stss.evaluation.confusion import calibration, class_table, confusion_matrix, most_confused
from keras_stss.evaluation.metrics import is_among_top, losses, summarize
from keras_stss.evaluation.scores import matched
from keras_stss.evaluation.statistics import LEVEL, bootstrap_interval, class_interval, compare


def all_figures(scores, labels):
    """Figures of a model on clips.

    Args:
        scores: :class:`keras_stss.evaluation.scores.Scores`.
        labels: class names by index.

    Returns:
        Dictionary: top1, top5, mean_class, loss, clips and unreadable as in
        :func:`keras_stss.evaluation.evaluate.evaluate`; intervals, {figure: [low, high]} of the share ``level``;
        calibration, see :func:`keras_stss.evaluation.confusion.calibration`; classes, a dictionary a class (label,
        clips, right, accuracy, precision, taken_for, taken_for_clips); confused, the pairs most confused (a, b,
        a_as_b, b_as_a); confusion, [true class, predicted class, clips] wherever there are any.
    """
    logits, truth = np.asarray(scores.logits, np.float64), scores.label
    right = {name: is_among_top(logits, truth, min(k, len(labels))) for name, k in (("top1", 1), ("top5", 5))}
    counts = confusion_matrix(logits, truth, len(labels))
    intervals = {name: bootstrap_interval(values) for name, values in right.items()}
    intervals["mean_class"] = class_interval(right["top1"], truth)
    intervals["loss"] = bootstrap_interval(losses(logits, truth))
    return {
        **summarize(logits, truth, len(labels)),
        "clips": len(truth),
        "unreadable": scores.unreadable,
        "level": LEVEL,
        "intervals": {name: list(pair) for name, pair in intervals.items()},
        "calibration": calibration(logits, truth),
        "classes": [_named(row, labels) for row in class_table(counts)],
        "confused": [
            {"a": labels[a], "b": labels[b], "a_as_b": there, "b_as_a": back}
            for a, b, there, back in most_confused(counts)
        ],
        "confusion": [[true, said, int(counts[true, said])] for true, said in np.argwhere(counts).tolist()],
    }


def comparisons(parts):
    """Each model against the first, by top-1 on the clips that both could read.

    Args:
        parts: list of (name, :class:`keras_stss.evaluation.scores.Scores`).

    Returns:
        List of {"run", "against", "clips"} and what :func:`keras_stss.evaluation.statistics.compare` says of them.
    """
    (first_name, first), *others = parts
    rows = []
    for name, scores in others:
        pair = matched(scores, first, (name, first_name))
        right = [is_among_top(np.asarray(each.logits, np.float64), each.label, 1) for each in pair]
        rows.append({"run": name, "against": first_name, "clips": len(right[0]), **compare(*right)})
    return rows


def _named(row, labels):
    other = row["taken_for"]
    return {"class": row["class"], "label": labels[row["class"]]} | {
        **{key: value for key, value in row.items() if key != "class"},
        "taken_for": None if other is None else labels[other],
    }
