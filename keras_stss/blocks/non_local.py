"""The non-local block: every position attends to every position of the clip."""

import keras
from keras import ops

from keras_stss.layers import ConvBN
from keras_stss.layers.fold import fold, unfold
from keras_stss.ops.sizes import check_shape, sizes


@keras.saving.register_keras_serializable(package="keras_stss")
class NonLocalBlock(keras.layers.Layer):
    """Embedded-Gaussian attention over (T, H, W), added to the input (Wang et al., CVPR 2018, eq. 1, 4 and 6).

    z_i = x_i + BN(W_z y_i), y_i = Σ_j softmax_j(θ(x_i) · φ(x_j) / √channels) g(x_j), where i and j run over all
    positions of all frames. The division is in the authors' released code, not in the paper. As there, the scale of
    the last normalisation starts at zero: a new block is the identity, and in its very first step nothing before that
    scale has a gradient. φ and g have no bias, since the softmax and the normalisation take it out again.

    Memory grows with the square of T·H·W: 157 MB of float32 a clip for 8×28×28, kept for the gradient.

    Args:
        channels: outputs of θ, φ and g; None for C // 2, as in the paper.
        subsample: whether φ and g see a 2×2 maximum of each frame, a quarter of the positions.

    Input and output shape: (B, T, H, W, C); C must be known.
    """

    def __init__(self, channels=None, subsample=False, **kwargs):
        super().__init__(**kwargs)
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be positive, or None. Received: channels={channels}")
        self.channels = channels
        self.subsample = subsample

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))
        width = self.channels or max(input_shape[-1] // 2, 1)
        self.theta = self._embedding(width, "theta", use_bias=True)
        self.phi = self._embedding(width, "phi")
        self.g = self._embedding(width, "g")
        for layer in (self.theta, self.phi, self.g):
            layer.build(input_shape)
        self.project = ConvBN(input_shape[-1], 1, activation=None, dtype=self.dtype_policy, name="project")
        self.project.bn.gamma_initializer = keras.initializers.Zeros()
        self.project.build((*input_shape[:-1], width))

    def _embedding(self, width, name, use_bias=False):
        normal = keras.initializers.RandomNormal(stddev=0.01)
        return keras.layers.Dense(
            width, use_bias=use_bias, kernel_initializer=normal, dtype=self.dtype_policy, name=name
        )

    def call(self, inputs, training=None):
        others = inputs
        if self.subsample:
            pooled = ops.max_pool(fold(inputs), 2, 2, padding="same", data_format="channels_last")
            others = unfold(pooled, like=inputs)  # (B, T, H', W', C)
        queries, keys, values = (
            self._positions(embed(maps)) for embed, maps in ((self.theta, inputs), (self.phi, others), (self.g, others))
        )  # (B, N, channels), (B, M, channels), (B, M, channels)
        scores = ops.matmul(queries * self.theta.units**-0.5, ops.transpose(keys, (0, 2, 1)))  # (B, N, M)
        wide = keras.backend.result_type(self.compute_dtype, "float32")
        # Of a single position Keras' softmax warns; it weighs one.
        attention = ops.softmax(ops.cast(scores, wide), axis=-1) if scores.shape[-1] != 1 else ops.ones_like(scores)
        gathered = ops.matmul(ops.cast(attention, self.compute_dtype), values)  # (B, N, channels)
        gathered = ops.reshape(gathered, (*sizes(inputs)[:4], self.theta.units))  # (B, T, H, W, channels)
        return inputs + self.project(gathered, training=training)

    def _positions(self, maps):
        """(B, T, H, W, c) → (B, T·H·W, c)."""
        batch, time, height, width, channels = sizes(maps)
        return ops.reshape(maps, (batch, time * height * width, channels))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "channels": self.channels, "subsample": self.subsample}
