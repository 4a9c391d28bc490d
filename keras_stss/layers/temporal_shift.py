"""Temporal shift as a layer."""

import keras

from keras_stss.ops.shift import causal_shift, temporal_shift
from keras_stss.ops.sizes import check_shape


@keras.saving.register_keras_serializable(package="keras_stss")
class TemporalShift(keras.layers.Layer):
    """Shifts a share of the channels along time (TSM, Lin et al., ICCV 2019).

    Args:
        divisor: 1/divisor of the channels takes the value of frame t+1, as many that of frame t-1. With fewer
            channels than that nothing is shifted.
        causal: only the channels from frame t-1 are shifted, those from frame t+1 stay (TSM's online form, section
            4.2): no frame sees a later one, and :meth:`step` computes a frame from what the one before left.

    Input and output shape: (B, T, H, W, C).
    """

    def __init__(self, divisor=8, causal=False, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(divisor, int) or divisor < 2:
            raise ValueError(f"divisor must be a whole number from 2. Received: divisor={divisor!r}")
        self.divisor = divisor
        self.causal = causal

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))

    def call(self, frames):
        channels = frames.shape[-1] // self.divisor
        return causal_shift(frames, channels)[0] if self.causal else temporal_shift(frames, channels)

    def state_shapes(self, input_shape):
        """{name: shape} of the state of :meth:`step` for frames of a shape: the shifted channels alone."""
        channels = input_shape[-1] // self.divisor
        return {"shifted": (input_shape[0], 1, *input_shape[2:4], channels)} if channels else {}

    def step(self, frame, state, count):
        """The next frame (B, 1, H, W, C) of a stream: (output, new state). See :mod:`keras_stss.streaming`."""
        if not state:
            return frame, {}
        shifted, left = causal_shift(frame, frame.shape[-1] // self.divisor, state["shifted"])
        return shifted, {"shifted": left}

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "divisor": self.divisor, "causal": self.causal}
