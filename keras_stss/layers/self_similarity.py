"""Spatio-temporal self-similarity as a layer."""

import keras

from keras_stss.ops.sizes import check_shape
from keras_stss.ops.stss import check_arguments, stss


@keras.saving.register_keras_serializable(package="keras_stss")
class SpatioTemporalSelfSimilarity(keras.layers.Layer):
    """S[b,t,y,x,l,u,v] = sim(F[b,t,y,x], F[b,t+l,y+u,x+v]) (SELFY, Kwon et al., eq. 1).

    Args:
        temporal_offsets: distinct integers l, in frames.
        window: (U, V), odd.
        similarity: ``"cosine"`` or ``"dot"``.
        implementation: see :func:`keras_stss.ops.stss`.

    Input shape: (B, T, H, W, C). Output shape: (B, T, H, W, L, U, V).
    """

    def __init__(
        self,
        temporal_offsets=(-2, -1, 0, 1, 2),
        window=(9, 9),
        similarity="cosine",
        implementation="auto",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_arguments(temporal_offsets, window, similarity, implementation)
        self.temporal_offsets = temporal_offsets
        self.window = window
        self.similarity = similarity
        self.implementation = implementation

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C")

    def call(self, features):
        return stss(features, self.temporal_offsets, self.window, self.similarity, self.implementation)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], len(self.temporal_offsets), *self.window)

    def get_config(self):
        return {
            **super().get_config(),
            "temporal_offsets": self.temporal_offsets,
            "window": self.window,
            "similarity": self.similarity,
            "implementation": self.implementation,
        }
