"""Feature extraction from self-similarity by explicit displacement: (U, V) is consumed, L is kept."""

import keras
from keras import ops

from keras_stss.ops.displacement import check_squeeze, kernel_soft_argmax
from keras_stss.ops.sizes import check_shape
from keras_stss.ops.soft_argmax import soft_argmax


@keras.saving.register_keras_serializable(package="keras_stss")
class SoftArgmaxExtractor(keras.layers.Layer):
    """Mean of (u, v) under softmax(S / temperature) (SELFY, Kwon et al., eq. 2).

    Two channels, as those of :class:`keras_stss.layers.Displacement`: first the horizontal, then the vertical
    displacement, each divided by the largest one, V // 2 and U // 2 (the equation leaves them in positions): so in
    [-1, 1], positive to the right and downwards. Half precision is widened to float32; only the result is rounded.

    Args:
        temperature: divisor of the scores before the softmax.

    Input shape: (B, T, H, W, L, U, V). Output shape: (B, T, H, W, L, 2).
    """

    def __init__(self, temperature=0.01, **kwargs):
        super().__init__(**kwargs)
        check_squeeze(None, temperature)
        self.temperature = temperature

    def build(self, input_shape):
        check_shape(input_shape, "B T H W L U V", known=("U", "V"))

    def call(self, volume):
        return _in_float32(soft_argmax, volume, self.temperature)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-2], 2)

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}


@keras.saving.register_keras_serializable(package="keras_stss")
class KernelSoftArgmaxExtractor(keras.layers.Layer):
    """Soft-argmax under a Gaussian around the maximum, and confidence (SELFY, Table 7b; MotionSqueeze, eq. 2 to 5).

    Three channels: horizontal and vertical displacement divided by the largest one, V // 2 and U // 2 (so in [-1, 1],
    positive to the right and downwards), and the largest similarity. Similarities below zero count as zero, as in the
    authors' released code. The same numbers as :class:`keras_stss.layers.Displacement` gives from the features; the
    definition is :func:`keras_stss.ops.kernel_soft_argmax`, computed in float32 for half precision.

    Args:
        sigma: standard deviation of the Gaussian in positions; None for no kernel.
        temperature: divisor of the scores before the softmax.

    Input shape: (B, T, H, W, L, U, V). Output shape: (B, T, H, W, L, 3).
    """

    def __init__(self, sigma=5.0, temperature=0.01, **kwargs):
        super().__init__(**kwargs)
        check_squeeze(sigma, temperature)
        self.sigma = sigma
        self.temperature = temperature

    def build(self, input_shape):
        check_shape(input_shape, "B T H W L U V", known=("U", "V"))

    def call(self, volume):
        return _in_float32(kernel_soft_argmax, volume, self.sigma, self.temperature)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-2], 3)

    def get_config(self):
        return {**super().get_config(), "sigma": self.sigma, "temperature": self.temperature}


def _in_float32(function, volume, *arguments):
    """function(volume, …) of the volume's dtype, computed in no less than float32."""
    wide = keras.backend.result_type(volume.dtype, "float32")
    return ops.cast(function(ops.cast(volume, wide), *arguments), volume.dtype)
