"""The correlation block: learned matching of each frame with the one before."""

import math

import keras
from keras import ops

from keras_stss.layers import ConvBN
from keras_stss.ops.sizes import check_shape, sizes

#: Groups of channels where there are enough of them.
GROUPS = 32


@keras.saving.register_keras_serializable(package="keras_stss")
class CorrelationBlock(keras.layers.Layer):
    """Reduce → weighted groupwise correlation → restore, added to the input (CorrNet, Wang et al., CVPR 2020).

    With f the input reduced by a 1×1×1 convolution, W the learned filter and c over the channels of group n,

        S[t,y,x,u,v,n] = mean over c of W[u,v,c] · f[t,y,x,c] · f[t-1,y+u,x+v,c]

    and Z = ReLU(V + BN(W_r S)): the paper's form that is summed with its input. f[-1] is f[0], so that the first frame
    is compared with itself; zero stands outside of the map. The paper learns a filter for each frame, which fixes T;
    here all frames share one. Every convolution has batch normalisation, the first one ReLU.

    Args:
        channels: channels of f; None for C // 4.
        window: (U, V) in steps, odd.
        dilation: positions of a step of the window.
        groups: groups of channels, each with a correlation of its own; divides ``channels``. None for 32, or the
            largest divisor of 32 that does.

    Input and output shape: (B, T, H, W, C); C must be known.
    """

    def __init__(self, channels=None, window=(7, 7), dilation=2, groups=None, **kwargs):
        super().__init__(**kwargs)
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be positive, or None. Received: channels={channels}")
        if len(window) != 2 or any(side < 1 or side % 2 == 0 for side in window):
            raise ValueError(f"window must be two odd positive numbers (U, V). Received: window={window}")
        if dilation < 1 or (groups is not None and groups < 1):
            raise ValueError(f"dilation and groups must be positive. Received: dilation={dilation}, groups={groups}")
        self.channels = channels
        self.window = window
        self.dilation = dilation
        self.groups = groups

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))
        channels, policy = self.channels or max(input_shape[-1] // 4, 1), self.dtype_policy
        self.parts = self.groups or math.gcd(GROUPS, channels)
        if channels % self.parts:
            raise ValueError(
                f"groups must divide the {channels} channels that are compared. Received: groups={self.groups}"
            )
        self.reduce = ConvBN(channels, 1, dtype=policy, name="reduce")
        self.reduce.build(input_shape)
        # Normalisation follows, so their scale is free: with 1 a weighted product keeps its own.
        self.filters = self.add_weight(
            name="filters", shape=(*self.window, channels), initializer=keras.initializers.RandomNormal(stddev=1.0)
        )
        self.restore = ConvBN(input_shape[-1], 1, activation=None, dtype=policy, name="restore")
        self.restore.build((*input_shape[:-1], self.window[0] * self.window[1] * self.parts))

    def call(self, inputs, training=None):
        features = self.reduce(inputs, training=training)  # (B, T, H, W, channels)
        before = ops.concatenate([features[:, :1], features[:, :-1]], axis=1)  # (B, T, H, W, channels)
        correlation = self._correlate(features, before)  # (B, T, H, W, U·V·groups)
        return ops.relu(inputs + self.restore(correlation, training=training))

    def _correlate(self, features, others):
        batch, time, height, width, channels = sizes(features)
        steps = self.dilation
        margins = [(side // 2 * steps, side // 2 * steps) for side in self.window]
        padded = ops.pad(others, [(0, 0), (0, 0), *margins, (0, 0)])
        grouped = (batch, time, height, width, self.parts, channels // self.parts)
        filters = ops.cast(self.filters, self.compute_dtype)
        parts = []
        for u in range(self.window[0]):
            for v in range(self.window[1]):
                moved = padded[:, :, u * steps : u * steps + height, v * steps : v * steps + width]
                products = features * moved * filters[u, v]  # (B, T, H, W, channels)
                parts.append(ops.mean(ops.reshape(products, grouped), axis=-1))  # (B, T, H, W, groups)
        return ops.concatenate(parts, axis=-1)  # (B, T, H, W, U·V·groups)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "window": self.window,
            "dilation": self.dilation,
            "groups": self.groups,
        }
