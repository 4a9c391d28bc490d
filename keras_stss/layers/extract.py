"""Feature extraction from self-similarity: (U, V) is consumed, L is kept."""

import keras
from keras import ops

from keras_stss.layers.map_conv import MapConvBN
from keras_stss.ops.sizes import check_shape


@keras.saving.register_keras_serializable(package="keras_stss")
class ConvExtractor(keras.layers.Layer):
    """Convolutions of 1×3×3 over (l, u, v), each with batch normalisation and ReLU (SELFY, eq. 5 and 6).

    All layers but the first and the last halve the window; the last, unpadded, has the kernel that brings what
    is left to one position: 9×9 → 9 → 5 → 3 → 1 with 3×3 kernels throughout, as in the paper.

    Args:
        channels: output channels of the layers; the last is C_F.

    Input shape: (B, T, H, W, L, U, V). Output shape: (B, T, H, W, L, C_F).
    """

    def __init__(self, channels=(4, 16, 64, 64), **kwargs):
        super().__init__(**kwargs)
        if not channels:
            raise ValueError(f"channels must name at least one layer. Received: channels={channels}")
        self.channels = channels

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
        for conv in self.convs:
            maps = conv(maps, training=training)
        return ops.squeeze(maps, axis=(-3, -2))  # (B, T, H, W, L, C_F)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-2], self.channels[-1])

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}
