"""The resolution that a block works at, and the way back to that of its input."""

import keras
from keras import ops

from keras_stss.layers.fold import fold, unfold
from keras_stss.ops.sizes import sizes

#: Steps from a block's input to the map that it works on; 0.5 is a map twice as large.
STRIDES = (0.5, 1, 2, 4)


def check_strides(strides):
    """Raises ValueError for strides that a block cannot have."""
    if strides not in STRIDES:
        raise ValueError(f"strides must be one of {STRIDES}. Received: strides={strides}")


def scale_and_strides(strides):
    """What is done before a block's first convolution, and the stride of that.

    The convolution has a 3×3 kernel, which does not see all of a map at a stride of 4: the map is halved first.
    """
    return {0.5: (2, 1), 1: (1, 1), 2: (1, 2), 4: (0.5, 2)}[strides]


def repeat(maps, factor):
    """(B, T, H, W, C) → (B, T, factor·H, factor·W, C): nearest neighbours."""
    return maps if factor == 1 else ops.repeat(ops.repeat(maps, factor, axis=2), factor, axis=3)


def halve(maps):
    """(B, T, H, W, C) → (B, T, (H + 1) // 2, (W + 1) // 2, C): means of 2×2 positions, of fewer at an odd edge."""
    return unfold(ops.average_pool(fold(maps), 2, 2, padding="same", data_format="channels_last"), like=maps)


def back(motion, strides, like):
    """Brings what a block computed to the H and W of its input ``like``, less what upsampling has done already."""
    if strides == 0.5:
        motion = halve(motion)
    _, _, height, width, _ = sizes(like)
    return motion[:, :, :height, :width]  # odd sizes leave rows and columns over


@keras.saving.register_keras_serializable(package="keras_stss")
class ResizeFrames(keras.layers.Layer):
    """Makes each frame twice or half as large, or leaves it.

    Args:
        scale: 2, each position repeated; 0.5, the mean of each 2×2 positions, of fewer at an odd edge; or 1.

    Input shape: (B, T, H, W, C). Output shape: (B, T, H', W', C), H' = 2 H, H or (H + 1) // 2.
    """

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        if scale not in (0.5, 1, 2):
            raise ValueError(f"scale must be 0.5, 1 or 2. Received: scale={scale}")
        self.scale = scale

    def call(self, frames):
        return halve(frames) if self.scale == 0.5 else repeat(frames, self.scale)

    def compute_output_shape(self, shape):
        sides = (
            size and int((size + 1) * self.scale if self.scale < 1 else size * self.scale) for size in shape[-3:-1]
        )
        return (*shape[:-3], *sides, shape[-1])

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}
