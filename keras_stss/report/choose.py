"""Which of many scored clips are worth a look."""

import dataclasses

import numpy as np

from keras_stss.evaluation.metrics import softmax

_A_PAIR = 2  # mistakes of one kind


@dataclasses.dataclass(frozen=True)
class Scored:
    """What some runs say of the clips that all of them have scored and that can still be found.

    Attributes:
        clips: N :class:`keras_stss.data.annotations.Clip`.
        names: N texts.
        label: (N,) true classes.
        probabilities: (R, N, K).
    """

    clips: list
    names: list[str]
    label: np.ndarray
    probabilities: np.ndarray

    @property
    def said(self):
        """(R, N), the predicted classes."""
        return np.argmax(self.probabilities, axis=2)

    @property
    def own(self):
        """(R, N), the probability of the true class."""
        return self.probabilities[:, np.arange(len(self.label)), self.label]


def scored_by_all(parts):
    """The clips that all runs have.

    Args:
        parts: list of (:class:`keras_stss.evaluation.scores.Scores`, {row: clip}).

    Returns:
        :class:`Scored`, or None where there is no such clip.
    """
    rows = [{str(scores.clips[row]): row for row in found} for scores, found in parts]
    first, found = parts[0]
    names = [name for name in rows[0] if all(name in others for others in rows[1:])]
    if not names:
        return None
    clips = [found[rows[0][name]] for name in names]
    label = np.asarray([first.label[rows[0][name]] for name in names])
    logits = [scores.logits[[places[name] for name in names]] for (scores, _), places in zip(parts, rows, strict=True)]
    return Scored(clips, names, label, np.stack([softmax(each) for each in logits]))


def samples(scored, count, without=(), seed=0):
    """Places of clips but for some, of as many classes as there can be, right and wrong ones as they come.

    Returns:
        At most ``count`` of them, in the order of their classes.
    """
    rng = np.random.default_rng(seed)
    places = rng.permutation(len(scored.clips))
    turn = {}  # the first of every class, then the second of every class …
    order = []
    for place in filter(lambda place: place not in without, places.tolist()):
        label = int(scored.label[place])
        turn[label] = turn.get(label, 0) + 1
        order.append((turn[label], place))
    chosen = [place for _, place in sorted(order, key=lambda pair: pair[0])[:count]]
    return sorted(chosen, key=lambda place: (scored.label[place], place))


def mistakes(scored, count):
    """Places of clips that all runs have wrong, the surest first, and at most two of one true and predicted class."""
    sure = scored.probabilities.max(axis=2).mean(axis=0)
    wrong = np.flatnonzero((scored.said != scored.label).all(axis=0))
    kinds, chosen = {}, []
    for place in wrong[np.argsort(-sure[wrong], kind="stable")]:
        kind = (int(scored.label[place]), int(scored.said[0, place]))
        kinds[kind] = kinds.get(kind, 0) + 1
        if kinds[kind] <= _A_PAIR and len(chosen) < count:
            chosen.append(int(place))
    return chosen


def disputed(scored, count):
    """Places of clips that some runs have right and others wrong, the largest gap in the true class first."""
    right = scored.said == scored.label
    gap = scored.own.max(axis=0) - scored.own.min(axis=0)
    mixed = np.flatnonzero(right.any(axis=0) & ~right.all(axis=0))
    return mixed[np.argsort(-gap[mixed], kind="stable")][:count].tolist()
