"""Temporal shift as a layer."""

import keras

from keras_stss.ops.shift import temporal_shift
from keras_stss.ops.sizes import check_shape


@keras.saving.register_keras_serializable(package="keras_stss")
class TemporalShift(keras.layers.Layer):
    """Shifts a share of the channels along time (TSM, Lin et al., ICCV 2019).

    Args:
        divisor: 1/divisor of the channels takes the value of frame t+1, as many that of frame t-1. With fewer
            channels than that nothing is shifted.

    Input and output shape: (B, T, H, W, C).
    """

    def __init__(self, divisor=8, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(divisor, int) or divisor < 2:
            raise ValueError(f"divisor must be a whole number from 2. Received: divisor={divisor!r}")
        self.divisor = divisor

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))

    def call(self, frames):
        return temporal_shift(frames, frames.shape[-1] // self.divisor)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "divisor": self.divisor}
