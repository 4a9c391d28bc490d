"""Convolution over time and space, batch normalisation, activation."""

import keras
from keras import ops

from keras_stss.layers.batch_norm import BatchNorm, fold_into
from keras_stss.layers.conv_bn import BN
from keras_stss.ops.sizes import check_shape


def triple(value):
    """One number or three → three numbers."""
    return (value,) * 3 if isinstance(value, int) else tuple(value)


@keras.saving.register_keras_serializable(package="keras_stss")
class Conv3DBN(keras.layers.Layer):
    """3-D convolution, batch normalisation and activation: the unit of I3D (Carreira and Zisserman, CVPR 2017).

    Args:
        filters: channels of the output.
        kernel_size: one number or (time, height, width).
        strides: one number or three.
        padding: zeros around the input, so that its size is divided by the stride and rounded up. ``"same"``: with
            the odd one behind, as TensorFlow; ``"symmetric"``: (kernel - 1) // 2 on both sides, as PyTorch. They
            differ for strided convolutions alone.
        activation: name of an activation, or None.
        epsilon: of the batch normalisation; I3D's and GoogLeNet's by default.

    Input shape: (B, T, H, W, C), C known. Output shape: (B, T', H', W', filters), T' = (T - 1) // stride + 1 and so on.
    """

    def __init__(self, filters, kernel_size, strides=1, padding="same", activation="relu", epsilon=1e-3, **kwargs):
        super().__init__(**kwargs)
        if padding not in ("same", "symmetric"):
            raise ValueError(f"padding must be 'same' or 'symmetric'. Received: padding={padding!r}")
        if padding == "symmetric" and any(side % 2 == 0 for side in triple(kernel_size)):
            raise ValueError(f"padding 'symmetric' needs odd kernel sizes. Received: kernel_size={kernel_size}")
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.activation = activation
        self.epsilon = epsilon
        # Where nothing is strided 'same' is already symmetric.
        by_hand = padding == "symmetric" and max(triple(strides)) > 1
        radii = [(side - 1) // 2 for side in triple(kernel_size)]
        self.pad = [(0, 0), *((radius, radius) for radius in radii), (0, 0)] if by_hand else None
        self.conv = keras.layers.Conv3D(
            filters,
            triple(kernel_size),
            strides=triple(strides),
            padding="valid" if by_hand else "same",
            use_bias=False,
            data_format="channels_last",
            kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
            dtype=self.dtype_policy,
            name="conv",
        )
        self.bn = BatchNorm(**{**BN, "epsilon": epsilon}, dtype=self.dtype_policy, name="bn")

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))
        pads = self.pad or [(0, 0)] * 5
        self.conv.build(tuple(size and size + sum(pad) for size, pad in zip(input_shape, pads)))
        self.bn.build((*input_shape[:-1], self.filters))
        self.activate = keras.activations.get(self.activation)

    def call(self, inputs, training=None):
        padded = ops.pad(inputs, self.pad) if self.pad else inputs
        return self.activate(self.bn(self.conv(padded), training=training))  # (B, T', H', W', filters)

    def fold_batch_norm(self):
        """Puts the normalisation's scale into the kernel (see :func:`keras_stss.layers.batch_norm.fold_into`)."""
        fold_into(self.conv.kernel, self.bn)

    def compute_output_shape(self, input_shape):
        sides = (size and (size - 1) // step + 1 for size, step in zip(input_shape[1:4], triple(self.strides)))
        return (input_shape[0], *sides, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "activation": self.activation,
            "epsilon": self.epsilon,
        }
