"""Figures from scores."""

import numpy as np


def softmax(logits):
    """Probabilities of logits (N, K), in float64."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _log_softmax(logits):
    """Logarithms of probabilities, however small."""
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def mean_scores(logits, average, axis):
    """Logits of the mean prediction of several views, or of several models.

    Args:
        logits: array, the classes on its last axis.
        average: ``"softmax"``: the softmax of what is given back is the mean of the softmax of ``logits``;
            ``"logits"``: it is their mean.
        axis: over which the mean is taken.

    Returns:
        float64 array without ``axis``.
    """
    if average not in ("softmax", "logits"):
        raise ValueError(f"average must be 'softmax' or 'logits'. Received: average={average!r}")
    logits = np.asarray(logits, np.float64)
    if average == "logits":
        return logits.mean(axis=axis)
    logs = _log_softmax(logits)
    largest = logs.max(axis=axis, keepdims=True)
    return np.log(np.exp(logs - largest).mean(axis=axis)) + np.squeeze(largest, axis)


def is_among_top(logits, labels, k):
    """Whether each clip's label is among the k highest scores; ties count against the label.

    Args:
        logits: (N, K). labels: (N,) indices. k: at most K is used.

    Returns:
        bool (N,).
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    rank = np.sum(~(logits < own), axis=1)  # 1 where the label's score is alone at the top
    return rank <= k


def predictions(logits, labels):
    """The class with the highest score of each clip; where the label shares it, another that does.

    So those that are right are those of :func:`is_among_top`.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    said = np.argmax(logits, axis=1)
    tied = np.flatnonzero((said == labels) & ~is_among_top(logits, labels, 1))
    others = logits[tied].astype(np.float64)
    others[np.arange(len(tied)), labels[tied]] = -np.inf
    said[tied] = np.argmax(others, axis=1)
    return said


def top_k_accuracy(logits, labels, k):
    """Share of clips whose label is among the k highest scores, see :func:`is_among_top`."""
    return float(np.mean(is_among_top(logits, labels, k)))


def losses(logits, labels):
    """-log p(label) of each clip."""
    return -np.take_along_axis(_log_softmax(logits), labels[:, None], axis=1)[:, 0]


def cross_entropy(logits, labels):
    """Mean of -log p(label)."""
    return float(np.mean(losses(logits, labels)))


def class_accuracies(logits, labels, classes):
    """Accuracy of each class, by :func:`is_among_top`; None for a class without clips."""
    right = is_among_top(logits, labels, 1)
    return [float(right[labels == index].mean()) if np.any(labels == index) else None for index in range(classes)]


def summarize(logits, labels, classes):
    """Top-1, top-5, mean class accuracy and loss of scored clips.

    Args:
        logits: (N, K), N > 0. labels: (N,). classes: K.

    Returns:
        Dictionary of figures in [0, 1] and the loss.
    """
    logits = np.asarray(logits, np.float64)
    by_class = class_accuracies(logits, labels, classes)
    present = [accuracy for accuracy in by_class if accuracy is not None]
    return {
        "top1": top_k_accuracy(logits, labels, 1),
        "top5": top_k_accuracy(logits, labels, min(5, classes)),
        "mean_class": float(np.mean(present)),
        "loss": cross_entropy(logits, labels),
    }
