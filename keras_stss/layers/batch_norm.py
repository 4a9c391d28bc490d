"""Batch normalisation that can be folded into the convolution before it."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="keras_stss")
class BatchNorm(keras.layers.BatchNormalization):
    """Batch normalisation of the last axis, which after :func:`fold_into` only adds its shift.

    Attributes:
        folded: whether the scale lies in the kernel before it. The variables hold a normalisation that scales by one,
            so a file of the folded model, read back, still computes the same, unfolded.

    Input and output shape: (…, C).
    """

    folded = False

    def call(self, inputs, training=None, mask=None):
        if self.folded:
            return inputs + ops.cast(ops.convert_to_tensor(self.beta), inputs.dtype)
        return super().call(inputs, training=training, mask=mask)


def fold_into(kernel, bn, axis=-1):
    """Multiplies a kernel by the scale of the normalisation of its outputs, which keeps the shift alone.

    With moving statistics, gamma · (K x - mean) / sqrt(variance + epsilon) + beta = (scale · K) x + shift.

    Args:
        kernel: ``keras.Variable`` of a convolution without bias.
        bn: built :class:`BatchNorm` of what it gives. It does not learn any more.
        axis: of the kernel, that of the outputs' channels.
    """
    gamma, beta, mean, variance = (
        np.asarray(ops.convert_to_numpy(variable), "float64")
        for variable in (bn.gamma, bn.beta, bn.moving_mean, bn.moving_variance)
    )
    scale = gamma / np.sqrt(variance + bn.epsilon)
    shape = [1] * len(kernel.shape)
    shape[axis] = -1
    kernel.assign(ops.convert_to_numpy(kernel) * scale.reshape(shape))
    bn.beta.assign(beta - mean * scale)
    bn.gamma.assign(np.ones_like(gamma))
    bn.moving_mean.assign(np.zeros_like(mean))
    bn.moving_variance.assign(np.full_like(variance, 1.0 - bn.epsilon))
    bn.trainable = False
    bn.folded = True
