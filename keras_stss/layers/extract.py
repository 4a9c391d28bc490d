"""Feature extraction from self-similarity: (U, V) is consumed, L is kept."""

import keras
from keras import ops

from keras_stss.layers.conv_bn import pair
from keras_stss.layers.map_conv import MapConvBN
from keras_stss.ops import map_conv
from keras_stss.ops.dispatch import check_implementation, use_native
from keras_stss.ops.sizes import check_shape


@keras.saving.register_keras_serializable(package="keras_stss")
class ConvExtractor(keras.layers.Layer):
    """Convolutions of 1×3×3 over (l, u, v), each with batch normalisation and ReLU (SELFY, eq. 5 and 6).

    All layers but the first and the last halve the window; the last, unpadded, has the kernel that brings what
    is left to one position: 9×9 → 9 → 5 → 3 → 1 with 3×3 kernels throughout, as in the paper.

    Args:
        channels: output channels of the layers; the last is C_F.
        implementation: ``"native"`` (CPU kernels that work on many maps at once), ``"reference"`` (:class:`MapConvBN`,
            any Keras backend and device) or ``"auto"``. The weights are the same.

    Input shape: (B, T, H, W, L, U, V). Output shape: (B, T, H, W, L, C_F).
    """

    def __init__(self, channels=(4, 16, 64, 64), implementation="auto", **kwargs):
        super().__init__(**kwargs)
        if not channels:
            raise ValueError(f"channels must name at least one layer. Received: channels={channels}")
        check_implementation(implementation)
        self.channels = channels
        self.implementation = implementation

    def build(self, input_shape):
        check_shape(input_shape, "B T H W L U V", known=("U", "V"))
        shape = (*input_shape, 1)
        self.convs = []
        for number, filters in enumerate(self.channels):
            last = number == len(self.channels) - 1
            conv = MapConvBN(
                filters,
                kernel_size=tuple(shape[-3:-1]) if last else 3,
                strides=1 if last or number == 0 else 2,
                padding="valid" if last else "same",
                dtype=self.dtype_policy,
                name=f"conv{number}",
            )
            conv.build(shape)
            shape = conv.compute_output_shape(shape)
            self.convs.append(conv)

    def call(self, volume, training=None):
        maps = ops.expand_dims(volume, -1)  # (B, T, H, W, L, U, V, 1)
        if use_native(self.implementation, "map_conv", keras.backend.standardize_dtype(maps.dtype)):
            maps = self._native_steps(maps, training) if self._by_steps(training) else self._native_stack(maps)
        else:
            for conv in self.convs:
                maps = conv(maps, training=training)
        return ops.squeeze(maps, axis=(-3, -2))  # (B, T, H, W, L, C_F)

    def _by_steps(self, training):
        """Statistics need all maps of one layer before the next."""
        return any(conv.takes_statistics(training) for conv in self.convs) or not map_conv.fits_stack(len(self.convs))

    def _native_stack(self, maps):
        kernels, shifts = [], []
        for conv in self.convs:
            scale, shift = conv.scale_and_shift()
            kernels.append(_kernel(conv) * scale)  # (kh, kw, C, F)
            shifts.append(shift)  # (F,)
        strides, paddings = [pair(conv.strides) for conv in self.convs], [conv.radius for conv in self.convs]
        return map_conv.stack(maps, kernels, shifts, strides, paddings)

    def _native_steps(self, maps, training):
        packed = map_conv.pack(maps)
        for conv in self.convs:
            own = conv.takes_statistics(training)
            packed, *statistics = map_conv.conv(packed, _kernel(conv), pair(conv.strides), conv.radius, own)
            scale, shift = conv.scale_and_shift(*statistics) if own else conv.scale_and_shift()
            packed = packed._replace(scale=scale, shift=shift)
        return map_conv.finish(packed)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-2], self.channels[-1])

    def get_config(self):
        return {**super().get_config(), "channels": self.channels, "implementation": self.implementation}


def _kernel(conv):
    """In the precision that the policy computes with, widened: what the reference multiplies with."""
    kernel = ops.cast(ops.convert_to_tensor(conv.kernel), conv.compute_dtype)
    return ops.cast(kernel, "float32")
