"""What an epoch shows of its clips."""

import contextlib

import numpy as np

from keras_stss.data.decode import ClipError
from keras_stss.data.pipeline import read_view
from keras_stss.evaluation.mistakes import surest_mistakes


def draw(board, step, model, data_set, config, batch, scores):
    """Gives TensorBoard clips that were trained on, the surest wrong predictions, and displacement maps.

    Args:
        board: :class:`keras_stss.training.showing.board.Board`.
        step: steps done.
        model: the model.
        data_set: training and validation clips, labels.
        config: :class:`keras_stss.config.Config`; ``train.board`` says how many.
        batch: a training batch, or None.
        scores: of the validation clips, as :func:`keras_stss.evaluation.evaluate.evaluate` gives them.
    """
    wanted, clips = config.train.board, data_set.validation
    if batch and wanted.clips:
        # Blended clips have no one label.
        names = (
            [""] * wanted.clips if "target" in batch else [data_set.labels[label] for label in batch["label"].numpy()]
        )
        board.clips(step, "train/clips", batch["frames"][: wanted.clips].numpy(), names[: wanted.clips])
    found = surest_mistakes(scores, data_set.labels)[: wanted.mistakes]
    pictures, captions = _views([clips[index] for index, _ in found], [text for _, text in found], config.data)
    if captions:
        board.clips(step, "validation/mistakes", pictures, captions)
    # The same ones each time; lists are often sorted by class.
    chosen = clips[:: max(len(clips) // max(wanted.motion, 1), 1)][: wanted.motion]
    pictures, captions = _views(chosen, [data_set.labels[clip.label] for clip in chosen], config.data)
    if captions:
        board.motion(step, model, pictures, captions)


def _views(clips, captions, data):
    """(frames of the clips as in testing, their captions), without those that cannot be read.

    One by one: a stream for so few costs more than all else that is drawn.
    """
    frames, kept = [], []
    for clip, caption in zip(clips, captions):
        with contextlib.suppress(ClipError):
            frames.append(read_view(clip, data))
            kept.append(caption)
    return np.array(frames), kept
