"""What an ensemble of models with different numbers of frames needs."""

import math

import keras
from keras import ops

from keras_stss.ops.sizes import sizes


@keras.saving.register_keras_serializable(package="keras_stss")
class SampleFrames(keras.layers.Layer):
    """Takes evenly spaced frames: number i is frame ⌊(i + 0.5) · T / frames⌋, the middle of its segment.

    A clip of that many frames passes unchanged; in a shorter one frames are repeated.

    Args:
        frames: number of frames to take.

    Input shape: (B, T, …), any dtype. Output shape: (B, frames, …), the same dtype.
    """

    def __init__(self, frames, **kwargs):
        # Bytes stay bytes, and numbers are not rounded to the compute dtype.
        super().__init__(autocast=False, **kwargs)
        if not isinstance(frames, int) or isinstance(frames, bool) or frames < 1:
            raise ValueError(f"frames must be a whole number from 1. Received: frames={frames!r}")
        self.frames = frames

    def call(self, inputs):
        time = sizes(inputs)[1]
        indices = ((2 * ops.arange(self.frames, dtype="int32") + 1) * time) // (2 * self.frames)  # (frames,)
        return ops.take(inputs, indices, axis=1)  # (B, frames, …)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=inputs.dtype)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.frames, *input_shape[2:])

    def get_config(self):
        return {**super().get_config(), "frames": self.frames}


@keras.saving.register_keras_serializable(package="keras_stss")
class MeanScores(keras.layers.Layer):
    """Logits of the mean of several models' probabilities: softmax(output) = mean over m of softmax(logits_m).

    The papers average the prediction scores of the models of an ensemble (SELFY, Table 1; MotionSqueeze, section 4.3).

    Input shape: list of (B, K). Output shape: (B, K), float32.
    """

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})

    def call(self, inputs):
        scores = ops.stack([ops.log_softmax(logits, axis=-1) for logits in inputs])  # (models, B, K)
        return ops.logsumexp(scores, axis=0) - math.log(len(inputs))  # (B, K)

    def compute_output_shape(self, input_shape):
        return input_shape[0]
