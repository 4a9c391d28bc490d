"""What is taken for what, and how much a probability can be believed."""

import numpy as np

from keras_stss.evaluation.metrics import is_among_top, predictions, softmax


def confusion_matrix(logits, labels, classes):
    """Counts of clips, (K, K) int64: the row is the true class, the column what is predicted."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (np.asarray(labels), predictions(logits, labels)), 1)
    return counts


def most_confused(counts, most=20):
    """Pairs of classes that are most often taken for one another, in both directions together.

    Args:
        counts: (K, K) as :func:`confusion_matrix` gives it.
        most: how many pairs at most.

    Returns:
        List of (a, b, clips of a taken for b, clips of b taken for a) with a < b, the most mistakes first.
    """
    both = np.triu(counts + counts.T, 1)
    order = np.argsort(-both, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(counts)) for place in order]
    return [(a, b, int(counts[a, b]), int(counts[b, a])) for a, b in pairs if both[a, b]]


def class_table(counts):
    """A dictionary a class that has clips or was predicted, by index.

    Returns:
        List of {"class", "clips", "right", "accuracy", "precision", "taken_for", "taken_for_clips"}: accuracy is the
        share of the class's clips that are right (recall), precision the share of those predicted as it that are;
        ``taken_for`` is the class it is most often mistaken for. None where there is nothing to divide or name.
    """
    rows = []
    for index, row in enumerate(counts):
        clips, predicted, right = int(row.sum()), int(counts[:, index].sum()), int(row[index])
        if not clips and not predicted:
            continue
        wrong = np.where(np.arange(len(row)) == index, 0, row)
        other = int(np.argmax(wrong))
        rows.append(
            {
                "class": index,
                "clips": clips,
                "right": right,
                "accuracy": right / clips if clips else None,
                "precision": right / predicted if predicted else None,
                "taken_for": other if wrong[other] else None,
                "taken_for_clips": int(wrong[other]),
            }
        )
    return rows


def calibration(logits, labels, bins=15):
    """Expected calibration error (Guo et al., ICML 2017) of the most probable class.

    Args:
        logits: (N, K), N > 0. labels: (N,). bins: of equal width, over probabilities from 0 to 1.

    Returns:
        {"ece", "bins"}: the mean over clips of |accuracy - confidence| of their bin, and of each bin that has clips
        {"low", "high", "clips", "confidence", "accuracy"}.
    """
    probabilities = softmax(logits)
    sure, right = probabilities.max(axis=1), is_among_top(np.asarray(logits), labels, 1)
    places = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)  # the upper edge belongs to a bin
    rows = []
    for number in range(bins):
        inside = places == number
        if inside.any():
            confidence, accuracy = float(sure[inside].mean()), float(right[inside].mean())
            edges = {"low": number / bins, "high": (number + 1) / bins}
            rows.append(edges | {"clips": int(inside.sum()), "confidence": confidence, "accuracy": accuracy})
    gaps = [row["clips"] * abs(row["accuracy"] - row["confidence"]) for row in rows]
    return {"ece": sum(gaps) / len(labels), "bins": rows}
