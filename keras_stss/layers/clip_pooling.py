"""Pooling over frames, rows and columns."""

import keras
from keras import ops

from keras_stss.layers.conv3d_bn import triple
from keras_stss.layers.fold import fold, unfold
from keras_stss.ops.sizes import sizes


@keras.saving.register_keras_serializable(package="keras_stss")
class ClipMaxPooling(keras.layers.Layer):
    """The largest value of each window of a clip, padded with the odd one behind, as I3D pools (``padding="same"``).

    The maximum of a box is that over time of the maxima of its frames, so this pools twice in two dimensions: LiteRT
    has no pooling in three, and TensorFlow none in three of float16 on a CPU.

    Args:
        pool_size: three whole numbers from 1, in time, height and width; or one for all.
        strides: the same.

    Input shape: (B, T, H, W, C). Output shape: (B, ⌈T / strides[0]⌉, ⌈H / strides[1]⌉, ⌈W / strides[2]⌉, C).

    Raises:
        ValueError: for other numbers.
    """

    def __init__(self, pool_size=2, strides=2, **kwargs):
        super().__init__(**kwargs)
        if any(len(triple(sizes)) != 3 or min(triple(sizes)) < 1 for sizes in (pool_size, strides)):
            raise ValueError(
                "pool_size and strides must be whole numbers from 1, one or three each. "
                f"Received: pool_size={pool_size}, strides={strides}"
            )
        self.pool_size = pool_size
        self.strides = strides

    def call(self, clip):
        (length, *window), (step, *steps) = triple(self.pool_size), triple(self.strides)
        if max(*window, *steps) > 1:
            clip = unfold(_max_pool(fold(clip), window, steps), like=clip)  # (B, T, H', W', C)
        if max(length, step) > 1:
            batch, frames, height, width, channels = sizes(clip)
            lines = ops.reshape(clip, (batch, frames, height * width, channels))
            lines = _max_pool(lines, (length, 1), (step, 1))  # (B, T', H' W', C)
            clip = ops.reshape(lines, (batch, sizes(lines)[1], height, width, channels))
        return clip

    def compute_output_shape(self, shape):
        inner = (size and -(-size // step) for size, step in zip(shape[1:4], triple(self.strides)))
        return (shape[0], *inner, shape[4])

    def get_config(self):
        return {**super().get_config(), "pool_size": self.pool_size, "strides": self.strides}


def _max_pool(pictures, window, steps):
    return ops.max_pool(pictures, tuple(window), tuple(steps), padding="same", data_format="channels_last")
