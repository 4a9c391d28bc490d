"""The MotionSqueeze block: motion from the displacement between neighbouring frames."""

import keras
from keras import ops

from keras_stss.layers import ConvBN, Displacement, SeparableConvBN
from keras_stss.ops.sizes import check_shape, sizes


@keras.saving.register_keras_serializable(package="keras_stss")
class MotionSqueezeBlock(keras.layers.Layer):
    """Reduce → correlate and squeeze → transform, added to the input (MotionSqueeze, Kwon et al., section 3.1).

    F'(t) = F(t) + M(t) (eq. 6), where M(t) is made from the displacement and confidence between frames t and t+1
    (eq. 1 to 5) by depthwise-separable convolutions. The last frame has no next one and repeats M of the frame before;
    a clip of one frame is taken to be at rest, with confidence 0.

    Args:
        channels: channels of the features that are compared, made by a 1×1 convolution with batch normalisation and
            ReLU; None compares the input itself. The paper says C/2, the released code takes 64.
        window: (U, V) in positions, odd.
        similarity: ``"cosine"`` as in the released code, or ``"dot"`` as in eq. 1.
        sigma: standard deviation of the kernel of the soft-argmax in positions; None for the plain soft-argmax.
        temperature: divisor of the scores in the soft-argmax.
        transform_channels: outputs of the depthwise-separable convolutions but for the last, whose output has the
            input's channels. The first has a 7×7 kernel, the others 3×3.
        implementation: see :func:`keras_stss.ops.displacement`.

    Input and output shape: (B, T, H, W, C); C must be known.
    """

    def __init__(
        self,
        channels=64,
        window=(15, 15),
        similarity="cosine",
        sigma=5.0,
        temperature=0.01,
        transform_channels=(16, 32, 64),
        implementation="auto",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be positive, or None. Received: channels={channels}")
        self.channels = channels
        self.window = window
        self.similarity = similarity
        self.sigma = sigma
        self.temperature = temperature
        self.transform_channels = transform_channels
        self.implementation = implementation
        policy = self.dtype_policy
        self.reduce = None if channels is None else ConvBN(channels, 1, dtype=policy, name="reduce")
        self.displacement = Displacement(
            (1,), window, similarity, sigma, temperature, implementation, dtype=policy, name="displacement"
        )

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))
        shape = input_shape
        if self.reduce is not None:
            self.reduce.build(shape)
            shape = self.reduce.compute_output_shape(shape)
        self.displacement.build(shape)
        shape = (*input_shape[:4], 3)
        self.transform = []
        for number, filters in enumerate((*self.transform_channels, input_shape[-1])):
            layer = SeparableConvBN(filters, 3 if number else 7, dtype=self.dtype_policy, name=f"transform{number}")
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
            self.transform.append(layer)

    def call(self, inputs, training=None):
        features = inputs if self.reduce is None else self.reduce(inputs, training=training)  # (B, T, H, W, channels)
        moved = ops.squeeze(self.displacement(features), axis=4)  # (B, T, H, W, 3)
        time = sizes(inputs)[1]
        # Frames that have a next one, and alone they, go through the transformation and its statistics.
        pairs = max(time - 1, 1) if isinstance(time, int) else ops.maximum(time - 1, 1)
        motion = moved[:, :pairs]
        for layer in self.transform:
            motion = layer(motion, training=training)  # (B, pairs, H, W, channels of the layer)
        motion = ops.concatenate([motion, motion[:, -1:]], axis=1)[:, :time]  # (B, T, H, W, C)
        return inputs + motion

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "window": self.window,
            "similarity": self.similarity,
            "sigma": self.sigma,
            "temperature": self.temperature,
            "transform_channels": self.transform_channels,
            "implementation": self.implementation,
        }
