"""Spatio-temporal self-similarity as a layer."""

import keras
from keras import ops

from keras_stss.ops.reference import l2_normalize, softmax_inside
from keras_stss.ops.sizes import check_shape, sizes
from keras_stss.ops.stss import check_volume, stss


@keras.saving.register_keras_serializable(package="keras_stss")
class SpatioTemporalSelfSimilarity(keras.layers.Layer):
    """S[b,t,y,x,l,u,v] = sim(F[b,t,y,x], F[b,t+l,y+u,x+v]) (SELFY, Kwon et al., eq. 1).

    The embedded Gaussian (Table 8) has weights: it is exp(θ(F[b,t,y,x]) · φ(F[b,t+l,y+u,x+v])) with linear maps θ and φ
    without a bias, divided by the sum of those of the whole neighbourhood (L, U, V) inside the clip.

    Args:
        temporal_offsets: distinct integers l, in frames.
        window: (U, V), odd.
        similarity: ``"cosine"``, ``"dot"`` or ``"embedded_gaussian"``.
        implementation: see :func:`keras_stss.ops.stss`.
        channels: what θ and φ give, of the embedded Gaussian alone; None: as many as come in.

    Input shape: (B, T, H, W, C). Output shape: (B, T, H, W, L, U, V).
    """

    def __init__(
        self,
        temporal_offsets=(-2, -1, 0, 1, 2),
        window=(9, 9),
        similarity="cosine",
        implementation="auto",
        channels=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_volume(temporal_offsets, window, similarity, implementation)
        if channels is not None and (similarity != "embedded_gaussian" or channels < 1):
            raise ValueError(
                "channels must be positive, and None but for similarity='embedded_gaussian'. "
                f"Received: channels={channels}"
            )
        self.temporal_offsets = temporal_offsets
        self.window = window
        self.similarity = similarity
        self.implementation = implementation
        self.channels = channels
        self.embedded = similarity == "embedded_gaussian"

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",) if self.embedded else ())
        if self.embedded:
            channels = input_shape[-1] if self.channels is None else self.channels
            self.theta, self.phi = (
                keras.layers.Dense(channels, use_bias=False, dtype=self.dtype_policy, name=name)
                for name in ("theta", "phi")
            )
            self.theta.build(input_shape)
            self.phi.build(input_shape)

    def call(self, features):
        queries, keys = (self.theta(features), self.phi(features)) if self.embedded else (features, None)
        return stss(queries, self.temporal_offsets, self.window, self.similarity, self.implementation, keys)

    @property
    def causal(self):
        """Whether no frame is compared with a later one."""
        return max(self.temporal_offsets) <= 0

    def state_shapes(self, input_shape):
        """{name: shape} of the state of :meth:`step` for frames of a shape: what the next frames are compared with."""
        past = -min(self.temporal_offsets)
        channels = self.phi.units if self.embedded else input_shape[-1]
        return {"keys": (input_shape[0], past, *input_shape[2:4], channels)} if past else {}

    def step(self, features, state, count):
        """The next frame (B, 1, H, W, C) of a stream: (volume, new state). See :mod:`keras_stss.streaming`."""
        past = -min(self.temporal_offsets)
        if self.embedded:
            queries, keys = self.theta(features), self.phi(features)  # 2 × (B, 1, H, W, C)
        else:
            queries = keys = l2_normalize(features) if self.similarity == "cosine" else features  # (B, 1, H, W, C)
        frames = ops.concatenate([state["keys"], keys], axis=1) if past else keys  # (B, past + 1, H, W, C)
        # Each offset stands where a frame of a clip does: one product for one frame.
        chosen = ops.concatenate([frames[:, past + lag : past + lag + 1] for lag in self.temporal_offsets], axis=1)
        queries = ops.repeat(queries, len(self.temporal_offsets), axis=1)  # (B, L, H, W, C)
        volume = self._attention(queries, chosen, count) if self.embedded else self._compare(queries, chosen)
        return volume, {"keys": frames[:, 1:]} if past else {}

    def _compare(self, queries, keys):
        """Dot products of frames one by one: twice (B, L, H, W, C) → (B, 1, H, W, L, U, V)."""
        volume = stss(queries, (0,), self.window, "dot", "reference", keys)  # (B, L, H, W, 1, U, V)
        batch, offsets, height, width = sizes(volume)[:4]
        rows, columns = self.window
        volume = ops.reshape(volume, (batch, offsets, height * width, rows * columns))
        return ops.reshape(ops.transpose(volume, (0, 2, 1, 3)), (batch, 1, height, width, offsets, rows, columns))

    def _attention(self, queries, keys, count):
        """The embedded Gaussian of frames one by one, as :meth:`_compare`, in float32 as the reference."""
        scores = self._compare(ops.cast(queries, "float32"), ops.cast(keys, "float32"))  # (B, 1, H, W, L, U, V)
        back = ops.convert_to_tensor([-lag for lag in self.temporal_offsets], count.dtype)
        seen = ops.cast(count[:, None] >= back, "float32")[:, :, None, None, None]  # (B, L, 1, 1, 1)
        # Where the frames that there are hold a number, and what lies outside of them a zero.
        ones = ops.ones_like(scores[:, 0, :, :, :, 0, 0])  # (B, H, W, L)
        ones = ops.transpose(ones, (0, 3, 1, 2))[..., None]  # (B, L, H, W, 1)
        inside = self._compare(ones, ones * seen) > 0.5  # (B, 1, H, W, L, U, V)
        # Four axes, because LiteRT sums over no more than six.
        few = (-1, *scores.shape[-3:])
        weights = softmax_inside(ops.reshape(scores, few), ops.reshape(inside, few))
        return ops.cast(ops.reshape(weights, sizes(scores)), queries.dtype)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], len(self.temporal_offsets), *self.window)

    def get_config(self):
        return {
            **super().get_config(),
            "temporal_offsets": self.temporal_offsets,
            "window": self.window,
            "similarity": self.similarity,
            "implementation": self.implementation,
            "channels": self.channels,
        }
