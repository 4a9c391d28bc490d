"""A run's model, frame by frame."""

import numpy as np
import tensorflow as tf

from keras_stss.config import ConfigError
from keras_stss.data.augment import center_view
from keras_stss.streaming import streaming_model, windowed_model

#: Predictions that are averaged of a model that gets its last frames again and again.
WINDOW_AVERAGE = 8


class LiveModel:
    """Calls a model with one picture after the other.

    A causal model computes each frame once, others get their last frames as a clip (see :mod:`keras_stss.streaming`).

    Args:
        model: Keras model with logits.
        config: of its run.
        average: frames, or predictions, that are averaged (default: of a causal model the frames of a clip).

    Attributes:
        how: a line that says which of the two.

    Raises:
        ConfigError: for an average below 1, and for a model whose scores are no numbers.
    """

    def __init__(self, model, config, average=None):
        if average is not None and average < 1:
            raise ConfigError(f"average must be at least 1. Received: {average}")
        data = self.data = config.data
        if config.model.causal:
            self.average = average or data.frames
            self.stream = streaming_model(model, average=self.average)
            self.how = f"causal: each frame is computed once; mean of {self.average} frames"
        else:
            self.average = average or WINDOW_AVERAGE
            self.stream = windowed_model(model, frames=data.frames, average=self.average)
            self.how = f"not causal: the last {data.frames} frames each time; mean of {self.average} predictions"
        signature = [tf.TensorSpec([None, None, 3], tf.uint8)]
        self._view = tf.function(lambda picture: center_view(picture[None], data.resize, data.crop), signature)
        self.reset()
        # Which also compiles what is slow the first time.
        if not np.isfinite(self(np.zeros((data.crop, data.crop, 3), np.uint8))).all():
            raise ConfigError("the run's model gives scores that are no numbers: its weights are spoilt, train it anew")
        self.reset()

    def reset(self):
        """Forgets all frames."""
        self._state = self.stream.initial_state(1, self.data.crop, self.data.crop)

    def __call__(self, picture):
        """Logits (K,) after one more frame, uint8 (H, W, 3) of any size."""
        with tf.device("CPU:0"):
            view = self._view(np.ascontiguousarray(picture))
        logits, self._state = self.stream.step(view, self._state)
        return logits.numpy()[0]
