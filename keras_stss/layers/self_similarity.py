"""Spatio-temporal self-similarity as a layer."""

import keras

from keras_stss.ops.sizes import check_shape
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
