"""Depthwise-separable convolution with batch normalisation after each half."""

import keras

from keras_stss.layers.batch_norm import BatchNorm, fold_into
from keras_stss.layers.conv_bn import BN, ConvBN, check_padding, pair
from keras_stss.layers.fold import fold, unfold


@keras.saving.register_keras_serializable(package="keras_stss")
class SeparableConvBN(keras.layers.Layer):
    """Depthwise convolution, then 1×1 convolution, each with batch normalisation and activation.

    Over the last two spatial axes; leading axes, however many, are folded into the batch. Zeros are padded alike on
    both sides, so that the size stays.

    Args:
        filters: channels of the output.
        kernel_size: of the depthwise convolution, one odd number or (height, width).
        activation: name of an activation, or None; after both halves.

    Input shape: (…, H, W, C), C known. Output shape: (…, H, W, filters).
    """

    def __init__(self, filters, kernel_size=3, activation="relu", **kwargs):
        super().__init__(**kwargs)
        check_padding("same", kernel_size)
        self.filters = filters
        self.kernel_size = kernel_size
        self.activation = activation
        policy = self.dtype_policy
        area = pair(kernel_size)[0] * pair(kernel_size)[1]
        self.depthwise = keras.layers.DepthwiseConv2D(
            pair(kernel_size),
            padding="same",
            use_bias=False,
            data_format="channels_last",
            # Each output sees one channel: its variance is that of `area` products.
            depthwise_initializer=keras.initializers.RandomNormal(stddev=(2.0 / area) ** 0.5),
            dtype=policy,
            name="depthwise",
        )
        self.bn = BatchNorm(**BN, dtype=policy, name="bn")
        self.pointwise = ConvBN(filters, 1, activation=activation, dtype=policy, name="pointwise")

    def build(self, input_shape):
        folded = (None, *input_shape[-3:])
        self.depthwise.build(folded)
        self.bn.build(folded)
        self.pointwise.build(folded)
        self.activate = keras.activations.get(self.activation)

    def call(self, inputs, training=None):
        maps = self.activate(self.bn(self.depthwise(fold(inputs)), training=training))  # (N, H, W, C)
        return unfold(self.pointwise(maps, training=training), like=inputs)  # (…, H, W, filters)

    def fold_batch_norm(self):
        """Puts the normalisation's scale into the kernel (see :func:`keras_stss.layers.batch_norm.fold_into`)."""
        fold_into(self.depthwise.kernel, self.bn, axis=2)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "activation": self.activation,
        }
