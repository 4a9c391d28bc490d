"""Depthwise convolution, batch normalisation, activation."""

import keras
from keras import ops

from keras_stss.layers.batch_norm import BatchNorm, fold_into
from keras_stss.layers.conv_bn import BN, check_padding, pair
from keras_stss.layers.fold import fold, unfold


@keras.saving.register_keras_serializable(package="keras_stss")
class DepthwiseConvBN(keras.layers.Layer):
    """One 2-D convolution for every channel by itself, batch normalisation and activation (Sandler et al., CVPR 2018).

    Leading axes, however many, are folded into the batch. Zeros are padded alike on both sides, as in PyTorch.

    Args:
        kernel_size: one odd number or (height, width).
        strides: one number, for both axes.
        activation: name of an activation, or None.

    Input shape: (…, H, W, C), C known. Output shape: (…, (H - 1) // stride + 1, (W - 1) // stride + 1, C).
    """

    def __init__(self, kernel_size=3, strides=1, activation="relu6", **kwargs):
        super().__init__(**kwargs)
        check_padding("same", kernel_size)
        if not isinstance(strides, int) or strides < 1:
            raise ValueError(f"strides must be one whole number from 1. Received: strides={strides!r}")
        self.kernel_size = kernel_size
        self.strides = strides
        self.activation = activation
        radii = [side // 2 for side in pair(kernel_size)]
        # With stride 1 'same' is already symmetric and cheaper than a pad of its own.
        by_hand = strides > 1 and max(radii) > 0
        self.pad = [(0, 0), *((radius, radius) for radius in radii), (0, 0)] if by_hand else None
        area = pair(kernel_size)[0] * pair(kernel_size)[1]
        self.depthwise = keras.layers.DepthwiseConv2D(
            pair(kernel_size),
            strides=strides,
            padding="valid" if by_hand else "same",
            use_bias=False,
            data_format="channels_last",
            # Each output sees one channel: its variance is that of `area` products.
            depthwise_initializer=keras.initializers.RandomNormal(stddev=(2.0 / area) ** 0.5),
            dtype=self.dtype_policy,
            name="depthwise",
        )
        self.bn = BatchNorm(**BN, dtype=self.dtype_policy, name="bn")

    def build(self, input_shape):
        pads = self.pad or [(0, 0)] * 4
        padded = (size and size + sum(pad) for size, pad in zip(input_shape[-3:], pads[1:]))
        self.depthwise.build((None, *padded))
        self.bn.build((None, None, None, input_shape[-1]))
        self.activate = keras.activations.get(self.activation)

    def call(self, inputs, training=None):
        maps = fold(inputs)  # (N, H, W, C)
        if self.pad:
            maps = ops.pad(maps, self.pad)
        maps = self.activate(self.bn(self.depthwise(maps), training=training))  # (N, H', W', C)
        return unfold(maps, like=inputs)  # (…, H', W', C)

    def fold_batch_norm(self):
        """Puts the normalisation's scale into the kernel (see :func:`keras_stss.layers.batch_norm.fold_into`)."""
        fold_into(self.depthwise.kernel, self.bn, axis=2)

    def compute_output_shape(self, input_shape):
        sides = (size and (size - 1) // self.strides + 1 for size in input_shape[-3:-1])
        return (*input_shape[:-3], *sides, input_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "activation": self.activation,
        }
