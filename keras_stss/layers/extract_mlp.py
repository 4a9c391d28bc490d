"""Feature extraction from self-similarity by fully connected layers: (U, V) is consumed, L is kept."""

import keras
from keras import ops

from keras_stss.layers.conv_bn import ConvBN
from keras_stss.ops.sizes import check_shape, sizes


@keras.saving.register_keras_serializable(package="keras_stss")
class MLPExtractor(keras.layers.Layer):
    """Fully connected layers on the vector of all U·V similarities (SELFY, Kwon et al., eq. 3 and 4).

    Each is followed by batch normalisation and ReLU. The equation has no normalisation; neither have those of the
    convolutions (eq. 5 and 7), where the authors' released code has one, so the layers here follow suit.

    Args:
        channels: outputs of the layers; the last is C_F. The paper has four layers and does not give their widths.

    Input shape: (B, T, H, W, L, U, V). Output shape: (B, T, H, W, L, C_F).
    """

    def __init__(self, channels=(64, 64, 64, 64), **kwargs):
        super().__init__(**kwargs)
        if not channels:
            raise ValueError(f"channels must name at least one layer. Received: channels={channels}")
        self.channels = channels
        self.dense = [
            ConvBN(width, 1, dtype=self.dtype_policy, name=f"dense{number}") for number, width in enumerate(channels)
        ]

    def build(self, input_shape):
        check_shape(input_shape, "B T H W L U V", known=("U", "V"))
        shape = (*input_shape[:-2], input_shape[-2] * input_shape[-1])
        for layer in self.dense:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def call(self, volume, training=None):
        *lead, rows, columns = sizes(volume)
        features = ops.reshape(volume, (*lead, rows * columns))  # (B, T, H, W, L, UV)
        for layer in self.dense:
            features = layer(features, training=training)
        return features  # (B, T, H, W, L, C_F)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-2], self.channels[-1])

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}
