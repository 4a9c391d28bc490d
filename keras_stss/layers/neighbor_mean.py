"""Averages of neighbouring frames."""

import keras
from keras import ops

from keras_stss.ops.sizes import sizes


@keras.saving.register_keras_serializable(package="keras_stss")
class NeighborMean(keras.layers.Layer):
    """The mean of each frame and the next one; a single frame stays as it is.

    I3D pools its last features so before it averages over time (Carreira and Zisserman, CVPR 2017, Figure 3: average
    pool 2×7×7): in the mean the frames at the ends weigh half as much as those between.

    Input shape: (B, T, …). Output shape: (B, max(T - 1, 1), …).
    """

    def call(self, frames):
        following = ops.concatenate([frames[:, 1:], frames[:, -1:]], axis=1)  # (B, T, …)
        pairs = (frames + following) / 2  # (B, T, …), the last of them a frame by itself
        count = sizes(frames)[1] - 1
        count = max(count, 1) if isinstance(count, int) else ops.maximum(count, 1)
        return pairs[:, :count]  # (B, max(T - 1, 1), …)

    def compute_output_shape(self, input_shape):
        count = input_shape[1] and max(input_shape[1] - 1, 1)
        return (input_shape[0], count, *input_shape[2:])
