"""Displacement and confidence as a layer."""

import keras

from keras_stss.ops.displacement import check_squeeze, displacement
from keras_stss.ops.sizes import check_shape
from keras_stss.ops.stss import check_arguments


@keras.saving.register_keras_serializable(package="keras_stss")
class Displacement(keras.layers.Layer):
    """Correlation, kernel soft-argmax and confidence in one step (MotionSqueeze, Kwon et al., eq. 1 to 5).

    Each position's similarity to the window around it in another frame is squeezed to three numbers: horizontal and
    vertical displacement, divided by the largest, and the largest similarity. See :func:`keras_stss.ops.displacement`.

    Args:
        temporal_offsets: distinct integers l, in frames.
        window: (U, V), odd.
        similarity: ``"cosine"`` or ``"dot"``.
        sigma: standard deviation of the Gaussian kernel in positions; None for the plain soft-argmax.
        temperature: divisor of the scores before the softmax.
        implementation: see :func:`keras_stss.ops.displacement`.

    Input shape: (B, T, H, W, C). Output shape: (B, T, H, W, L, 3).
    """

    def __init__(
        self,
        temporal_offsets=(1,),
        window=(15, 15),
        similarity="cosine",
        sigma=5.0,
        temperature=0.01,
        implementation="auto",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_arguments(temporal_offsets, window, similarity, implementation)
        check_squeeze(sigma, temperature)
        self.temporal_offsets = temporal_offsets
        self.window = window
        self.similarity = similarity
        self.sigma = sigma
        self.temperature = temperature
        self.implementation = implementation

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C")

    def call(self, features):
        return displacement(
            features,
            self.temporal_offsets,
            self.window,
            self.similarity,
            self.sigma,
            self.temperature,
            self.implementation,
        )

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], len(self.temporal_offsets), 3)

    def get_config(self):
        return {
            **super().get_config(),
            "temporal_offsets": self.temporal_offsets,
            "window": self.window,
            "similarity": self.similarity,
            "sigma": self.sigma,
            "temperature": self.temperature,
            "implementation": self.implementation,
        }
