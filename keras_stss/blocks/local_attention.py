"""Spatio-temporal local self-attention: attention over a window of space and time."""

import keras
from keras import ops

from keras_stss.layers import ConvBN, ConvIntegrator
from keras_stss.ops.sizes import check_shape, sizes
from keras_stss.ops.stss import check_arguments

#: Of a position that takes no part; its weight is below the smallest number.
NOWHERE = -1e9


@keras.saving.register_keras_serializable(package="keras_stss")
class LocalAttentionBlock(keras.layers.Layer):
    """Reduce → attend → integrate, added to the input (SELFY, Kwon et al., appendix C, table 8).

    Stand-alone self-attention (Ramachandran et al., NeurIPS 2019, eq. 2 and 3) over offsets (l, u, v) in time and
    space: with q, k, v learned projections of the reduced features and r learned embeddings of the offset,

        a[t,y,x] = Σ softmax(q[t,y,x] · (k[t+l,y+u,x+v] + r[l,u,v])) v[t+l,y+u,x+v]

    and Z = ReLU(F · W) + V with F the integrated a, as in the SELFY block. Only positions inside the clip take part;
    where there are none, a is zero. The paper does not say how r is extended to time. Here r[l,u,v] = [r_u, r_v] + r_l:
    row and column take half of the channels each, as in the original, and with a single l the rest is the original.

    Args:
        temporal_offsets: distinct offsets l, in frames.
        window: (U, V) in positions of the strided map, odd.
        channels: channels of the reduced features and of q, k and v; even.
        strides: stride of the 3×3 convolution that reduces, 1 or 2.
        integration_channels: see :class:`keras_stss.layers.ConvIntegrator`.

    Input and output shape: (B, T, H, W, C); C must be known.
    """

    def __init__(
        self,
        temporal_offsets=(-2, -1, 0, 1, 2),
        window=(9, 9),
        channels=32,
        strides=2,
        integration_channels=(64, 64, 64, 64),
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_arguments(temporal_offsets, window, "dot", "auto")
        if channels < 2 or channels % 2:
            raise ValueError(f"channels must be positive and even. Received: channels={channels}")
        if strides not in (1, 2):
            raise ValueError(f"strides must be 1 or 2. Received: strides={strides}")
        self.temporal_offsets = temporal_offsets
        self.window = window
        self.channels = channels
        self.strides = strides
        self.integration_channels = integration_channels
        policy = self.dtype_policy
        self.reduce = ConvBN(channels, 3, strides, dtype=policy, name="reduce")
        self.query, self.key, self.value = (
            keras.layers.Dense(channels, use_bias=False, dtype=policy, name=name) for name in ("query", "key", "value")
        )

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))
        self.reduce.build(input_shape)
        shape = self.reduce.compute_output_shape(input_shape)
        for layer in (self.query, self.key, self.value):
            layer.build(shape)
        half = self.channels // 2
        self.along_time = self._embedding("time", len(self.temporal_offsets), self.channels)
        self.along_rows = self._embedding("row", self.window[0], half)
        self.along_columns = self._embedding("column", self.window[1], half)
        self.integrate = ConvIntegrator(
            input_shape[-1],
            self.integration_channels,
            upsample=self.strides,
            dtype=self.dtype_policy,
            name="integrate",
        )
        self.integrate.build((*shape[:4], 1, self.channels))

    def _embedding(self, name, count, width):
        """(count, width) weights; None for a single offset, which the softmax would cancel."""
        normal = keras.initializers.RandomNormal(stddev=self.channels**-0.5)
        return None if count == 1 else self.add_weight(name=name, shape=(count, width), initializer=normal)

    def call(self, inputs, training=None):
        features = self.reduce(inputs, training=training)  # (B, T, H', W', channels)
        attended = self._attend(features)[..., None, :]  # (B, T, H', W', 1, channels)
        motion = self.integrate(attended, training=training)  # (B, T, strides·H', strides·W', C)
        _, _, height, width, _ = sizes(inputs)
        return inputs + motion[:, :, :height, :width]  # odd sizes leave one row or column over

    def _attend(self, features):
        """(B, T, H, W, C) → (B, T, H, W, C). All positions of two frames are compared, then masked to the window."""
        batch, time, height, width, channels = sizes(features)
        count = height * width
        queries, keys, values = (
            ops.reshape(layer(features), (batch, time, count, channels)) for layer in (self.query, self.key, self.value)
        )  # (B, T, HW, C) each
        wide = keras.backend.result_type(self.compute_dtype, "float32")
        near = self._near(queries, height, width)  # (B, T, HW, HW)
        inside = ops.reshape(self._inside(height, width), (1, 1, count, count))
        scores, masks, places = [], [], []
        for number, offset in enumerate(self.temporal_offsets):
            products = ops.matmul(queries, ops.transpose(self._frames_at(keys, offset), (0, 1, 3, 2)))
            if self.along_time is not None:
                products = products + ops.matmul(
                    queries, ops.cast(self.along_time, self.compute_dtype)[number, :, None]
                )
            other = ops.arange(time, dtype="int32") + offset
            there = ops.reshape(ops.logical_and(other >= 0, other < time), (1, time, 1, 1))
            masks.append(ops.logical_and(there, inside))  # (1, T, HW, HW)
            scores.append(ops.where(masks[-1], ops.cast(products + near, wide), NOWHERE))  # (B, T, HW, HW)
            places.append(self._frames_at(values, offset))  # (B, T, HW, C)
        mask = ops.concatenate(masks, axis=-1)  # (1, T, HW, L·HW)
        weights = ops.softmax(ops.concatenate(scores, axis=-1), axis=-1) * ops.cast(mask, wide)  # (B, T, HW, L·HW)
        attended = ops.matmul(ops.cast(weights, self.compute_dtype), ops.concatenate(places, axis=2))
        return ops.reshape(attended, (batch, time, height, width, channels))

    def _frames_at(self, tensor, offset):
        """(B, T, …) → (B, T, …): frame t + offset at t, zeros where there is none."""
        reach, time = abs(offset), sizes(tensor)[1]
        padded = ops.pad(tensor, [(0, 0), (reach, reach), (0, 0), (0, 0)])
        return padded[:, reach + offset : reach + offset + time]

    def _near(self, queries, height, width):
        """(B, T, HW, HW): the query's product with the embeddings of row and column of every other position."""
        half = self.channels // 2
        batch, time, count, _ = sizes(queries)
        near = ops.zeros((), queries.dtype)
        parts = ((self.along_rows, queries[..., :half], height, 0), (self.along_columns, queries[..., half:], width, 1))
        for weights, queries_of_axis, size, axis in parts:
            if weights is None:
                continue
            products = ops.matmul(queries_of_axis, ops.transpose(ops.cast(weights, queries.dtype)))  # (B, T, HW, U)
            side = self.window[axis]
            products = ops.reshape(products, (batch, time, height, width, side))
            steps = ops.clip(self._steps(size) + side // 2, 0, side - 1)  # (size, size)
            band = ops.one_hot(steps, side, dtype=queries.dtype)  # (size, size, U)
            if axis == 0:
                spread = ops.einsum("btywu,yzu->btywz", products, band)[..., :, None]  # (B, T, H, W, H, 1)
            else:
                spread = ops.einsum("btyxu,xzu->btyxz", products, band)[..., None, :]  # (B, T, H, W, 1, W)
            near = near + spread
        if len(near.shape) == 0:
            return near
        near = ops.broadcast_to(near, (batch, time, height, width, height, width))
        return ops.reshape(near, (batch, time, count, count))

    def _inside(self, height, width):
        """(H, W, H, W): whether the second position lies in the window around the first."""
        rows, columns = (
            ops.abs(self._steps(size)) <= side // 2 for size, side in zip((height, width), self.window)
        )  # (H, H), (W, W)
        return ops.logical_and(rows[:, None, :, None], columns[None, :, None, :])

    def _steps(self, size):
        """(size, size): the second coordinate minus the first."""
        places = ops.arange(size, dtype="int32")
        return places[None] - places[:, None]

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "temporal_offsets": self.temporal_offsets,
            "window": self.window,
            "channels": self.channels,
            "strides": self.strides,
            "integration_channels": self.integration_channels,
        }
