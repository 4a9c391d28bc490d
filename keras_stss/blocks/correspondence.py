"""The CP module: each position beside the positions of other frames that look most alike."""

import keras
from keras import ops

from keras_stss.layers import ConvBN
from keras_stss.ops.sizes import check_shape, sizes


@keras.saving.register_keras_serializable(package="keras_stss")
class CorrespondenceBlock(keras.layers.Layer):
    """Correspondence proposals, embedded and added to the input (CP module of CPNet, Liu et al., CVPR 2019).

    For every position i, the ``neighbors`` positions j of all other frames with the smallest |f_i - f_j| are its
    proposals. Two layers that all pairs share, each with batch normalisation and ReLU, see [j - i, f_i, f_j], where
    j - i are shares of the clip's length, height and width; the maximum over the proposals goes through a 1×1×1
    convolution with batch normalisation. As in the authors' released code the scale of that last normalisation starts
    at zero: a new block is the identity, and in its very first step nothing before that scale has a gradient.

    No gradient goes through the choice of proposals. Where other frames have fewer positions than ``neighbors``, all
    are proposals; a clip of one frame has none, and passes as it is. Memory grows with the square of T·H·W: 157 MB of
    float32 a clip for 8×28×28.

    Args:
        neighbors: proposals of a position, k.
        channels: outputs of the two shared layers; None for C // 4 and C // 2, as in the released code.

    Input and output shape: (B, T, H, W, C); C must be known.
    """

    def __init__(self, neighbors=8, channels=None, **kwargs):
        super().__init__(**kwargs)
        if neighbors < 1:
            raise ValueError(f"neighbors must be positive. Received: neighbors={neighbors}")
        if channels is not None and (len(channels) != 2 or min(channels) < 1):
            raise ValueError(f"channels must be two positive numbers, or None. Received: channels={channels}")
        self.neighbors = neighbors
        self.channels = channels

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))
        features, policy = input_shape[-1], self.dtype_policy
        widths = self.channels or (max(features // 4, 1), max(features // 2, 1))
        self.embed = [ConvBN(width, 1, dtype=policy, name=f"embed{number}") for number, width in enumerate(widths)]
        shape = (None, None, None, 3 + 2 * features)
        for layer in self.embed:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        self.project = ConvBN(features, 1, activation=None, dtype=policy, name="project")
        self.project.bn.gamma_initializer = keras.initializers.Zeros()
        self.project.build((*input_shape[:-1], shape[-1]))

    def call(self, inputs, training=None):
        batch, time, height, width, channels = sizes(inputs)
        count = time * height * width
        points = ops.reshape(inputs, (batch, count, channels))  # (B, N, C)
        chosen = self._proposals(ops.stop_gradient(points), time)  # (B, N, k)
        first = ops.reshape(ops.arange(batch, dtype=chosen.dtype) * count, (-1, 1, 1))
        theirs = ops.take(ops.reshape(points, (batch * count, channels)), chosen + first, axis=0)  # (B, N, k, C)
        ours = ops.broadcast_to(points[:, :, None], ops.shape(theirs))  # (B, N, k, C)
        places = self._places(time, height, width)  # (N, 3)
        way = ops.cast(ops.take(places, chosen, axis=0) - places[None, :, None], points.dtype)  # (B, N, k, 3)
        pairs = ops.concatenate([way, ours, theirs], axis=-1)  # (B, N, k, 3 + 2C)
        for layer in self.embed:
            pairs = layer(pairs, training=training)  # (B, N, k, channels of the layer)
        motion = ops.reshape(ops.max(pairs, axis=2), (batch, time, height, width, pairs.shape[-1]))
        motion = self.project(motion, training=training)  # (B, T, H, W, C)
        if isinstance(time, int):
            return inputs + motion if time > 1 else inputs
        return inputs + ops.where(time > 1, motion, ops.zeros_like(motion))

    def _proposals(self, points, time):
        """(B, N, C) → (B, N, k): the nearest positions of other frames, numbered within the clip."""
        wide = ops.cast(points, keras.backend.result_type(points.dtype, "float32"))
        batch, count, _ = sizes(points)
        squares = ops.sum(wide * wide, axis=-1)  # (B, N)
        # -|f_i - f_j|² but for |f_i|², which changes no order.
        nearness = 2 * ops.matmul(wide, ops.transpose(wide, (0, 2, 1))) - squares[:, None]  # (B, N, N)
        frames = (batch, time, count // time, time, count // time)
        number = ops.arange(time, dtype="int32")
        own = ops.reshape(ops.equal(number[:, None], number), (1, time, 1, time, 1))
        nearness = ops.where(own, -float("inf"), ops.reshape(nearness, frames))  # (B, T, HW, T, HW)
        others = count - count // time
        if isinstance(others, int):
            neighbors = max(min(self.neighbors, others), 1)
        else:
            neighbors = ops.maximum(ops.minimum(self.neighbors, others), 1)
        return ops.top_k(ops.reshape(nearness, (batch, count, count)), neighbors, sorted=False)[1]

    def _places(self, time, height, width):
        """(N, 3): where each position lies, as shares of the clip's length, height and width."""
        axes = [ops.arange(size, dtype="float32") / ops.cast(size, "float32") for size in (time, height, width)]
        grid = ops.meshgrid(*axes, indexing="ij")
        return ops.stack([ops.reshape(axis, (-1,)) for axis in grid], axis=-1)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "neighbors": self.neighbors, "channels": self.channels}
