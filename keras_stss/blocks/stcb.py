"""The spatio-temporal convolution block: motion from convolutions, SELFY's own rival."""

import keras
from keras import ops

from keras_stss.layers import Conv3DBN, ConvBN, FCIntegrator, ResizeFrames
from keras_stss.layers.conv_bn import BN
from keras_stss.layers.resize import back, check_strides, scale_and_strides
from keras_stss.ops.sizes import check_shape


@keras.saving.register_keras_serializable(package="keras_stss")
class STCBlock(keras.layers.Layer):
    """Spatio-temporal convolutions in place of self-similarity, "STCB" (SELFY, Kwon et al., section 4.4, Fig. 4a).

    The paper says that the block is several spatio-temporal convolutions with the receptive field and about the
    parameters of SELFY-s (``SELFYBlock(integration="fc")``) and gives no figures. Here a 3×3 convolution brings the
    input to the resolution of SELFY and to few channels, four convolutions see 5 frames and 9×9 positions in all, as a
    volume of (5, 9, 9) does, and a 1×1×1 convolution gives the input's channels; each with batch normalisation and
    ReLU. At 128 input channels that makes 228,064 parameters with 48 channels (SELFY-s: 235,916).

    Args:
        channels: channels between the first and the last convolution.
        kernels: (time, height, width) of each convolution between them, odd.
        strides: see :class:`keras_stss.blocks.SELFYBlock`.
        output: ``"r+v"``, or ``"r"`` for what the block adds alone.

    Input and output shape: (B, T, H, W, C); C must be known.
    """

    def __init__(
        self,
        channels=48,
        kernels=((3, 3, 3), (3, 3, 3), (1, 3, 3), (1, 3, 3)),
        strides=2,
        output="r+v",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_strides(strides)
        if output not in ("r+v", "r"):
            raise ValueError(f"output must be 'r+v' or 'r'. Received: output={output!r}")
        if not kernels or any(len(kernel) != 3 or any(side % 2 == 0 for side in kernel) for kernel in kernels):
            raise ValueError(f"kernels must be three odd numbers each, one at least. Received: kernels={kernels}")
        self.channels = channels
        self.kernels = kernels
        self.strides = strides
        self.result = output
        policy = self.dtype_policy
        scale, steps = scale_and_strides(strides)
        self.resize = ResizeFrames(scale, dtype=policy, name="resize")
        self.reduce = ConvBN(channels, 3, steps, dtype=policy, name="reduce")
        self.convs = [
            Conv3DBN(channels, tuple(kernel), epsilon=BN["epsilon"], dtype=policy, name=f"conv{number}")
            for number, kernel in enumerate(kernels)
        ]

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))
        shape = input_shape
        for layer in (self.resize, self.reduce, *self.convs):
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        upsample = max(int(self.strides), 1)
        self.integrate = FCIntegrator(input_shape[-1], upsample, dtype=self.dtype_policy, name="integrate")
        self.integrate.build((*shape[:-1], 1, shape[-1]))

    def call(self, inputs, training=None):
        features = self.reduce(self.resize(inputs), training=training)  # (B, T, H', W', channels)
        for conv in self.convs:
            features = conv(features, training=training)
        motion = self.integrate(ops.expand_dims(features, 4), training=training)  # (B, T, sH', sW', C)
        motion = back(motion, self.strides, like=inputs)
        return motion + inputs if self.result == "r+v" else motion

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "kernels": self.kernels,
            "strides": self.strides,
            "output": self.result,
        }
