"""Convolution over tiny maps, as one matrix product."""

import keras
import numpy as np
from keras import ops

from keras_stss.layers.batch_norm import BatchNorm, fold_into
from keras_stss.layers.conv_bn import BN, check_padding, pair
from keras_stss.layers.fold import fold, unfold
from keras_stss.ops.sizes import sizes


@keras.saving.register_keras_serializable(package="keras_stss")
class MapConvBN(keras.layers.Layer):
    """Convolution of small maps with few channels, batch normalisation and ReLU.

    The same function as :class:`keras_stss.layers.ConvBN` with the same weights, for maps such as a similarity window:
    there are very many of them (one a position and offset), each has a few pixels and channels, and a convolution
    library spends its time on anything but products. Here a whole row of a map is one vector: three neighbouring rows,
    laid side by side, are multiplied with a banded matrix made from the kernel, which gives one row of the output. The
    band costs V / kernel width times the products and saves everything else.

    Args:
        filters: channels of the output.
        kernel_size: one number or (height, width).
        strides: one number or two.
        padding: ``"same"`` pads by (kernel - 1) // 2 on all sides; ``"valid"`` not at all.

    Input shape: (…, U, V, C), all three known. Output shape: (…, U', V', filters).
    """

    def __init__(self, filters, kernel_size, strides=1, padding="same", **kwargs):
        super().__init__(**kwargs)
        check_padding(padding, kernel_size)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.bn = BatchNorm(**BN, dtype=self.dtype_policy, name="bn")

    @property
    def radius(self):
        """Zeros on either side of a map, vertical and horizontal."""
        return tuple((side - 1) // 2 if self.padding == "same" else 0 for side in pair(self.kernel_size))

    def _geometry(self, shape):
        """Kernel, stride, radius and output size, vertical and horizontal."""
        kernel, strides, radius = pair(self.kernel_size), pair(self.strides), self.radius
        size = tuple((shape[a - 3] + 2 * radius[a] - kernel[a]) // strides[a] + 1 for a in (0, 1))
        return kernel, strides, radius, size

    def build(self, input_shape):
        if None in input_shape[-3:]:
            raise ValueError(f"the maps' size (U, V, C) must be known. Received: shape={tuple(input_shape)}")
        kernel, (_, stride), (_, radius), size = self._geometry(input_shape)
        if min(size) < 1:
            raise ValueError(f"the kernel {kernel} does not fit the maps. Received: shape={tuple(input_shape)}")
        self.kernel = self.add_weight(
            (*kernel, input_shape[-1], self.filters),
            initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
            name="kernel",
        )
        # One where input column v meets output column w under kernel column k.
        v, k, w = np.ogrid[: input_shape[-2], : kernel[1], : size[1]]
        self.band = (v == stride * w + k - radius).astype("float32")  # (V, kw, V')
        self.bn.build((None, None, None, self.filters))

    def call(self, inputs, training=None):
        folded = fold(inputs)  # (N, U, V, C)
        count, height, width, channels = sizes(folded)
        (rows, _), (stride, _), (radius, _), (out_height, out_width) = self._geometry(inputs.shape)
        maps = ops.reshape(folded, (count, height, width * channels))  # (N, U, V·C)
        if radius:
            maps = ops.pad(maps, ((0, 0), (radius, radius), (0, 0)))
        last = stride * (out_height - 1) + 1
        beside = [maps[:, row : row + last : stride] for row in range(rows)]
        stacked = ops.concatenate(beside, axis=-1) if rows > 1 else beside[0]  # (N, U', kh·V·C)
        matrix = self._banded(ops.cast(ops.convert_to_tensor(self.kernel), inputs.dtype))  # (kh·V·C, V'·F)
        outputs = ops.matmul(ops.reshape(stacked, (count * out_height, rows * width * channels)), matrix)
        outputs = ops.relu(self._normalize(outputs, out_width, training))  # (N·U', V'·F)
        outputs = ops.reshape(outputs, (count, out_height, out_width, self.filters))
        return unfold(outputs, like=inputs)  # (…, U', V', filters)

    def _normalize(self, wide, copies, training):
        """Batch normalisation of (M, copies·F) with the statistics of F channels.

        What ``self.bn`` computes, on whole rows: over an axis of a few channels each element-wise step costs several
        times more. Half precision is widened to float32, as Keras does.
        """
        dtype = wide.dtype
        if self.bn.folded:
            return wide + ops.cast(ops.tile(ops.convert_to_tensor(self.bn.beta), copies), dtype)
        wide = ops.cast(wide, "float32")
        if self.takes_statistics(training):
            mean = self._by_channel(ops.mean(wide, axis=0), copies)  # (F,)
            variance = self._by_channel(ops.mean(ops.square(wide - ops.tile(mean, copies)), axis=0), copies)
            scale, shift = self.scale_and_shift(mean, variance)
        else:
            scale, shift = self.scale_and_shift()
        return ops.cast(wide * ops.tile(scale, copies) + ops.tile(shift, copies), dtype)

    def takes_statistics(self, training):
        """Whether a call normalises with the statistics of its own maps."""
        return bool(training and self.bn.trainable)

    def scale_and_shift(self, mean=None, variance=None):
        """What normalisation multiplies with and adds: two tensors (F,) of float32.

        With the mean and biased variance (F,) of the maps at hand it also moves the moving statistics; without, it
        takes those.
        """
        bn = self.bn
        if mean is not None and bn.synchronized:
            mean, variance = over_devices(mean, variance)
        if mean is None:
            mean, variance = ops.cast(bn.moving_mean, "float32"), ops.cast(bn.moving_variance, "float32")
        else:
            for moving, value in ((bn.moving_mean, mean), (bn.moving_variance, variance)):
                moving.assign(moving * bn.momentum + ops.cast(value, moving.dtype) * (1.0 - bn.momentum))
        scale = ops.cast(bn.gamma, "float32") * ops.rsqrt(variance + bn.epsilon)
        return scale, ops.cast(bn.beta, "float32") - mean * scale

    def _by_channel(self, wide, copies):
        return ops.mean(ops.reshape(wide, (copies, self.filters)), axis=0)

    def _banded(self, kernel):
        """(kh, kw, C, F) → (kh·V·C, V'·F)."""
        rows, columns, channels, filters = kernel.shape
        width, _, out_width = self.band.shape
        band = ops.cast(ops.convert_to_tensor(self.band), kernel.dtype)
        band = ops.reshape(ops.transpose(band, (0, 2, 1)), (width * out_width, columns))  # (V·V', kw)
        flat = ops.reshape(ops.transpose(kernel, (1, 0, 2, 3)), (columns, rows * channels * filters))
        matrix = ops.reshape(ops.matmul(band, flat), (width, out_width, rows, channels, filters))
        matrix = ops.transpose(matrix, (2, 0, 3, 1, 4))  # (kh, V, C, V', F)
        return ops.reshape(matrix, (rows * width * channels, out_width * filters))

    def fold_batch_norm(self):
        """Puts the normalisation's scale into the kernel (see :func:`keras_stss.layers.batch_norm.fold_into`)."""
        fold_into(self.kernel, self.bn)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-3], *self._geometry(input_shape)[3], self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
        }


def over_devices(mean, variance):
    """Mean and variance (F,) of as many maps on each device → those of all devices' maps."""
    everywhere, _ = ops.moments(mean[None], axes=[0], synchronized=True)
    variance = variance + ops.square(mean - everywhere)
    return everywhere, ops.moments(variance[None], axes=[0], synchronized=True)[0]
