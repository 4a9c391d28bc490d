"""How far figures of a set of clips can be trusted."""

import math

import numpy as np

#: Resampled sets, and the share of them that an interval holds.
DRAWS, LEVEL = 2000, 0.95
_CHUNK = 10_000_000  # drawn numbers held at a time


def bootstrap_interval(values, draws=DRAWS, level=LEVEL, seed=0):
    """Percentile bootstrap interval of a mean (Efron, 1979).

    Args:
        values: (N,), one a clip, for example 1 where it was right. N > 0.
        draws: resampled sets.
        level: share of them inside the interval.
        seed: of the draws.

    Returns:
        (low, high).
    """
    return _percentiles(_resampled(np.asarray(values, np.float64), draws, seed), level)


def class_interval(right, labels, draws=DRAWS, level=LEVEL, seed=0):
    """The same for the mean of the classes' accuracies; clips are drawn anew within each class.

    Args:
        right: (N,) of 0 and 1. labels: (N,) class of each.
    """
    right = np.asarray(right, np.float64)
    present = np.unique(labels)
    means = np.zeros(draws)
    for number, label in enumerate(present):
        means += _resampled(right[labels == label], draws, (seed, number)) / len(present)
    return _percentiles(means, level)


def compare(right, other, draws=DRAWS, level=LEVEL, seed=0):
    """Paired comparison of two models on the same clips.

    Args:
        right, other: (N,) of 0 and 1: which clips each model got right.

    Returns:
        Dictionary: ``difference``, accuracy of ``right`` minus that of ``other``; ``low`` and ``high``, its bootstrap
        interval over clips; ``only_first`` and ``only_second``, clips that one model alone got right; ``p_value`` of
        the exact McNemar test (two-sided binomial test on those clips).
    """
    right, other = np.asarray(right, np.int64), np.asarray(other, np.int64)
    if right.shape != other.shape or not right.size:
        raise ValueError(f"both models need the same clips. Received: {right.shape} and {other.shape}")
    first, second = int(np.sum(right > other)), int(np.sum(other > right))
    low, high = bootstrap_interval(right - other, draws, level, seed)
    return {
        "difference": float(np.mean(right - other)),
        "low": low,
        "high": high,
        "only_first": first,
        "only_second": second,
        "p_value": _binomial_test(first, second),
    }


def _resampled(values, draws, seed):
    """Means of ``draws`` sets of as many values, drawn with replacement: (draws,)."""
    generator = np.random.default_rng(seed)
    means, rows = [], max(1, _CHUNK // len(values))
    for first in range(0, draws, rows):
        chosen = generator.integers(len(values), size=(min(rows, draws - first), len(values)))
        means.append(values[chosen].mean(axis=1))
    return np.concatenate(means)


def _percentiles(means, level):
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _binomial_test(first, second):
    """Probability that fair coins fall at least as unevenly as first against second."""
    total, least = first + second, min(first, second)
    logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(least + 1)]
    tail = sum(math.exp(each - total * math.log(2)) for each in logs)
    return min(1.0, 2 * tail)
