"""What an epoch shows of its clips."""

import numpy as np

from keras_stss.data.pipeline import evaluation_stream
from keras_stss.evaluation.mistakes import surest_mistakes


def draw(board, step, model, data_set, config, batch, scores):
    """Gives TensorBoard clips that were trained on, the surest wrong predictions, and displacement maps.

    Args:
        board: :class:`keras_stss.training.board.Board`.
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
    pictures, _ = _views(clips[: wanted.motion], [""] * wanted.motion, config.data)
    if pictures is not None:
        board.motion(step, model, pictures)


def _views(clips, captions, data):
    """(frames of the clips as in testing, their captions), without those that cannot be read; (None, []) for none."""
    if not clips:
        return None, []
    (batch,) = evaluation_stream(clips, data.model_copy(update={"max_unreadable": 1.0}), len(clips))
    index = batch["index"].numpy()
    readable = np.flatnonzero(index >= 0)
    return (
        (batch["frames"].numpy()[readable], [captions[index[place]] for place in readable])
        if len(readable)
        else (None, [])
    )
