"""Everything that is worth seeing of one clip."""

import dataclasses
import difflib

import numpy as np

from keras_stss.evaluation.metrics import softmax
from keras_stss.visualize.cam import ClassMap, grad_cam
from keras_stss.visualize.motion import ChangeMap, MotionMap, PointSimilarity, change_maps, motion_maps
from keras_stss.visualize.network import VisualizeError, network_of


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
    """What a network sees in one clip.

    Attributes:
        clip: uint8 (T, H, W, 3), the frames that it saw.
        labels: class names by index.
        ranking: [(label, probability)], the most probable first.
        truth: the right label, or None where it is not known.
        maps: of the motion blocks, or of one stage's features.
        points: a point's self-similarity for each of ``maps``.
        changes: of STM's blocks.
        cams: what speaks for the class asked for, else for the predicted one, and after it the right one if another.
    """

    clip: np.ndarray
    labels: list[str]
    ranking: list[tuple[str, float]]
    truth: str | None
    maps: list[MotionMap]
    points: list[PointSimilarity]
    changes: list[ChangeMap]
    cams: list[ClassMap]

    @property
    def is_still(self):
        """Whether all frames are the same one, so that there is no motion to see."""
        return bool((self.clip == self.clip[:1]).all())


def look_at(model, clip, labels, truth=None, *, label=None, stage=None, point=None, member=None):
    """Looks at one clip in every way.

    Args:
        model: ``keras.Model`` from uint8 frames (B, T, H, W, 3) to logits (B, K).
        clip: uint8 (T, H, W, 3).
        labels: K class names.
        truth: the right one, where it is known.
        label: index of the class that Grad-CAM explains; None for the predicted one.
        stage: see :func:`keras_stss.visualize.motion_maps` and :func:`keras_stss.visualize.grad_cam`.
        point: (x, y, t) in pixels and frames of the clip; None for the strongest motion of each block.
        member: network of an ensemble, from 0.

    Returns:
        :class:`Look`.

    Raises:
        VisualizeError: for what cannot be looked at.
    """
    network = network_of(model, member)
    logits = network.see(clip, ["logits"])["logits"]
    if not np.isfinite(logits).all():
        raise VisualizeError("what the model says of the clip are no numbers: its weights are damaged")
    maps = motion_maps(model, clip, stage, member)
    points = [found.similarity_at(point) for found in maps if found.moving]
    probabilities = softmax(logits[None])[0]
    order = np.argsort(-probabilities, kind="stable")
    wanted = [int(order[0]) if label is None else label]
    if label is None and truth in labels and labels.index(truth) != wanted[0]:
        wanted.append(labels.index(truth))
    return Look(
        clip=network.frames(clip),
        labels=labels,
        ranking=[(labels[index], float(probabilities[index])) for index in order],
        truth=truth,
        maps=maps,
        points=points,
        changes=change_maps(model, clip, stage, member),
        cams=[grad_cam(model, clip, each, stage, member) for each in wanted],
    )


def find_label(labels, text):
    """Index of the class with this name, in any case, or of this number.

    Raises:
        VisualizeError: where there is none, with the nearest names.
    """
    folded = [each.casefold() for each in labels]
    if text in labels:
        return labels.index(text)
    if text.casefold() in folded:
        return folded.index(text.casefold())
    if text.isdecimal() and int(text) < len(labels):
        return int(text)
    near = difflib.get_close_matches(text.casefold(), folded, n=3, cutoff=0.4) or folded[:3]
    names = ", ".join(repr(labels[folded.index(each)]) for each in near)
    raise VisualizeError(f"no class {text!r} among the {len(labels)}. Did you mean: {names}?")
