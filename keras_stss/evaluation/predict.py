"""Classifying single clips."""

from pathlib import Path

import numpy as np

from keras_stss.data.pipeline import read_clip
from keras_stss.evaluation.metrics import softmax


def predict(model, labels, data, path):
    """Ranks the labels of one clip, cut as in testing: the middle frame of each segment, centre crop.

    Args:
        model: Keras model with logits.
        labels: class names by index.
        data: :class:`keras_stss.config.DataConfig` of the run.
        path: video file, or folder of frames.

    Returns:
        List of (label, probability), most probable first.

    Raises:
        ClipError: where the clip cannot be read.
    """
    frames = read_clip(str(path), "frames" if Path(path).is_dir() else "video", data)  # (T, crop, crop, 3)
    probabilities = softmax(model(np.asarray(frames)[None], training=False).numpy())[0]
    return [(labels[index], float(probabilities[index])) for index in np.argsort(-probabilities, kind="stable")]
