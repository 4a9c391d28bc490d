"""Convolution, batch normalisation, activation."""

import keras
from keras import ops

from keras_stss.layers.batch_norm import BatchNorm, fold_into
from keras_stss.layers.fold import fold, unfold

#: PyTorch's defaults, in which the papers' models were trained (its momentum 0.1 is Keras' 0.9).
BN = {"momentum": 0.9, "epsilon": 1e-5}


def pair(value):
    """One number or two → two numbers."""
    return (value, value) if isinstance(value, int) else tuple(value)


def check_padding(padding, kernel_size):
    """Raises ValueError for a padding that does not exist or does not go with the kernel."""
    if padding not in ("same", "valid"):
        raise ValueError(f"padding must be 'same' or 'valid'. Received: padding={padding!r}")
    if padding == "same" and any(side % 2 == 0 for side in pair(kernel_size)):
        raise ValueError(f"padding 'same' needs odd kernel sizes. Received: kernel_size={kernel_size}")


@keras.saving.register_keras_serializable(package="keras_stss")
class ConvBN(keras.layers.Layer):
    """2-D convolution over the last two spatial axes, batch normalisation and activation.

    Leading axes, however many, are folded into the batch, so the same layer serves frames (B, T, H, W, C) and
    similarity maps (B, T, H, W, L, U, V, C). Strided convolutions are padded on both sides alike, as in PyTorch.

    Args:
        filters: channels of the output.
        kernel_size: one number or (height, width).
        strides: one number or two.
        padding: ``"same"`` pads by (kernel - 1) // 2 on all sides; ``"valid"`` not at all.
        activation: name of an activation, or None.

    Input shape: (…, H, W, C). Output shape: (…, H', W', filters), H' = (H + 2p - kernel) // stride + 1.
    """

    def __init__(self, filters, kernel_size, strides=1, padding="same", activation="relu", **kwargs):
        super().__init__(**kwargs)
        check_padding(padding, kernel_size)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.activation = activation
        radii = [(side - 1) // 2 for side in pair(kernel_size)]
        # With stride 1 'same' is already symmetric and cheaper than a pad of its own.
        by_hand = padding == "same" and max(pair(strides)) > 1 and max(radii) > 0
        self.pad = [(0, 0), *((radius, radius) for radius in radii), (0, 0)] if by_hand else None
        self.conv = keras.layers.Conv2D(
            filters,
            pair(kernel_size),
            strides=pair(strides),
            padding="valid" if by_hand else padding,
            use_bias=False,
            data_format="channels_last",
            kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
            dtype=self.dtype_policy,
            name="conv",
        )
        self.bn = BatchNorm(**BN, dtype=self.dtype_policy, name="bn")

    def _folded_shape(self, shape):
        pads = self.pad or [(0, 0)] * 4
        return (None, *(size and size + sum(pad) for size, pad in zip(shape[-3:-1], pads[1:3])), shape[-1])

    def build(self, input_shape):
        folded = self._folded_shape(input_shape)
        self.conv.build(folded)
        self.bn.build((None, *self.conv.compute_output_shape(folded)[1:]))
        self.activate = keras.activations.get(self.activation)

    def call(self, inputs, training=None):
        outputs = fold(inputs)  # (N, H, W, C)
        if self.pad:
            outputs = ops.pad(outputs, self.pad)
        outputs = self.activate(self.bn(self.conv(outputs), training=training))  # (N, H', W', filters)
        return unfold(outputs, like=inputs)  # (…, H', W', filters)

    def fold_batch_norm(self):
        """Puts the normalisation's scale into the kernel (see :func:`keras_stss.layers.batch_norm.fold_into`)."""
        fold_into(self.conv.kernel, self.bn)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-3], *self.conv.compute_output_shape(self._folded_shape(input_shape))[1:])

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "activation": self.activation,
        }
