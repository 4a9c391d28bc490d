"""The tensor steps of STM: convolution over time, and differences between neighbouring frames."""

import keras
import numpy as np
from keras import ops

from keras_stss.layers.conv_bn import ConvBN
from keras_stss.layers.fold import fold, unfold
from keras_stss.layers.frame_pairs import where_begun
from keras_stss.ops.sizes import check_shape, sizes


def check_choice(name, value, choices):
    """Raises ValueError for a value that is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}. Received: {name}={value!r}")


def check_count(name, value):
    """Raises ValueError for what is no whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1. Received: {name}={value!r}")


def pass_on(shape, dtype=None):
    """Initializer of a kernel (h, w, C, 1) or (h, w, C, C) whose centre passes every channel on; the rest is zero."""
    kernel = np.zeros(shape)
    kernel[shape[0] // 2, shape[1] // 2] = np.eye(shape[2]) if shape[3] > 1 else 1.0
    return ops.convert_to_tensor(kernel, dtype=dtype)


def convolve(maps, values, kernel, strides=1, padding="same"):
    """2-D convolution of maps (N, H, W, C) with the values of a ``"channelwise"`` or ``"ordinary"`` kernel."""
    function = ops.depthwise_conv if kernel == "channelwise" else ops.conv
    return function(maps, values, strides, padding, "channels_last")


@keras.saving.register_keras_serializable(package="keras_stss")
class TemporalConv(keras.layers.Layer):
    """Convolution of size 3 over time, each position by itself (STM, Wang et al., section 3.1, eq. 1).

    G(t) = K(-1) F(t-1) + K(0) F(t) + K(1) F(t+1), with zeros before the first and after the last frame, no bias.

    The paper does not say how the kernels start. Here they start as [0, 1, 0], which passes the input on: a network
    with ImageNet weights is at first what it was, and learns from there.

    Args:
        kernel: ``"channelwise"`` has three numbers a channel (eq. 1), ``"ordinary"`` mixes the channels (Table 10),
            ``"frequency"`` is fixed to [0, 1, 1], F(t) + F(t+1), and has no weights (section 3.3, Table 8).
        causal: without K(1) F(t+1): no frame sees a later one. The weights keep their shape, so that they fit both
            forms; K(1) is not used. ``"frequency"`` is F(t-1) + F(t).

    Input and output shape: (B, T, H, W, C); C must be known.
    """

    def __init__(self, kernel="channelwise", causal=False, **kwargs):
        super().__init__(**kwargs)
        check_choice("kernel", kernel, ("channelwise", "ordinary", "frequency"))
        self.kernel = kernel
        self.causal = causal

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))
        if self.kernel != "frequency":
            channels = input_shape[-1]
            shape = (3, 1, channels, 1 if self.kernel == "channelwise" else channels)
            self.values = self.add_weight(shape=shape, initializer=pass_on, name="kernel")

    def call(self, inputs):
        if self.causal:
            return self._after(ops.zeros_like(inputs[:, :1]), inputs)
        if self.kernel == "frequency":
            return inputs + ops.concatenate([inputs[:, 1:], ops.zeros_like(inputs[:, :1])], axis=1)
        return self._convolve(inputs, self.values, "same")

    def _after(self, before, frames):
        """The causal form of frames (B, T, H, W, C), of which ``before`` (B, 1, H, W, C) comes first."""
        clip = ops.concatenate([before, frames], axis=1)  # (B, T + 1, H, W, C)
        if self.kernel == "frequency":
            return clip[:, :-1] + frames
        return self._convolve(clip, self.values[:2], "valid")

    def _convolve(self, inputs, values, padding):
        batch, time, height, width, channels = sizes(inputs)
        # Time takes the place of the rows: faster than sums of shifted frames, in the gradient above all.
        rows = ops.reshape(inputs, (batch, time, height * width, channels))  # (B, T, HW, C)
        rows = convolve(rows, values, self.kernel, padding=padding)
        return ops.reshape(rows, (batch, sizes(rows)[1], height, width, channels))

    def state_shapes(self, input_shape):
        """{name: shape} of the state of :meth:`step` for frames of a shape."""
        return {"frame": (input_shape[0], 1, *input_shape[2:])}

    def step(self, frame, state, count):
        """The next frame (B, 1, H, W, C) of a stream: (output, new state). See :mod:`keras_stss.streaming`."""
        return self._after(state["frame"], frame), {"frame": frame}

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "kernel": self.kernel, "causal": self.causal}


@keras.saving.register_keras_serializable(package="keras_stss")
class MotionDifference(keras.layers.Layer):
    """Each frame less a 3×3 convolution of the next one (STM, Wang et al., section 3.2, eq. 2).

    H(t) = F(t) - K * F(t+1), with zeros round the frame and no bias; the last frame, which has no next one, gives
    zeros. With strides, H is taken where a strided 3×3 convolution has its centres.

    The kernels start with a centre of 1 and zeros around it, H(t) = F(t) - F(t+1).

    Args:
        kernel: ``"channelwise"`` (eq. 2), ``"ordinary"``, which mixes the channels (Table 10), or ``"frequency"``,
            F(t) - F(t+1) without weights (section 3.3, Table 8).
        strides: stride in both directions of space.
        causal: the same differences a frame later, H(t) = F(t-1) - K * F(t): no frame sees a later one, and the first
            frame, which has none before it, gives zeros.

    Input shape: (B, T, H, W, C); C must be known. Output shape: (B, T, ceil(H / strides), ceil(W / strides), C).
    """

    def __init__(self, kernel="channelwise", strides=1, causal=False, **kwargs):
        super().__init__(**kwargs)
        check_choice("kernel", kernel, ("channelwise", "ordinary", "frequency"))
        check_count("strides", strides)
        self.kernel = kernel
        self.strides = strides
        self.causal = causal

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))
        if self.kernel != "frequency":
            channels = input_shape[-1]
            shape = (3, 3, channels, 1 if self.kernel == "channelwise" else channels)
            self.values = self.add_weight(shape=shape, initializer=pass_on, name="kernel")

    def call(self, inputs):
        frames, moved = self._both(inputs)  # 2 × (B, T, H', W', C)
        # The first frame is moved without use, lest a clip of one frame give the convolution an empty batch.
        difference, nothing = frames[:, :-1] - moved[:, 1:], ops.zeros_like(frames[:, :1])
        return ops.concatenate([nothing, difference] if self.causal else [difference, nothing], axis=1)

    def _both(self, inputs):
        """F and K * F where H is taken."""
        frames = inputs[:, :, :: self.strides, :: self.strides] if self.strides > 1 else inputs  # (B, T, H', W', C)
        return frames, frames if self.kernel == "frequency" else self._convolve(inputs)

    def state_shapes(self, input_shape):
        """{name: shape} of the state of :meth:`step` for frames of a shape."""
        return {"frame": (input_shape[0], 1, *self.compute_output_shape(input_shape)[2:])}

    def step(self, frame, state, count):
        """The next frame (B, 1, H, W, C) of a stream: (output, new state). See :mod:`keras_stss.streaming`."""
        frame, moved = self._both(frame)  # 2 × (B, 1, H', W', C)
        return where_begun(count, state["frame"] - moved), {"frame": frame}

    def _convolve(self, inputs):
        maps = ops.pad(fold(inputs), [(0, 0), (1, 1), (1, 1), (0, 0)])  # (N, H + 2, W + 2, C)
        return unfold(convolve(maps, self.values, self.kernel, self.strides, "valid"), like=inputs)

    def compute_output_shape(self, input_shape):
        space = (size and -(-size // self.strides) for size in input_shape[2:4])
        return (*input_shape[:2], *space, input_shape[-1])

    def get_config(self):
        return {**super().get_config(), "kernel": self.kernel, "strides": self.strides, "causal": self.causal}


@keras.saving.register_keras_serializable(package="keras_stss")
class ChannelwiseMotion(keras.layers.Layer):
    """The channel-wise motion module, CMM (STM, Wang et al., section 3.2).

    A 1×1 convolution reduces the channels, each frame is compared with the next (:class:`MotionDifference`, eq. 2), and
    a 1×1 convolution restores the channels.

    The paper names no normalisation. Here one follows the last convolution, as everywhere in a ResNet, and nothing the
    first: the shift of a normalisation would cancel in the difference. The last one starts with a scale of 0.1, beside
    the 0.2 or so of ImageNet weights: motion hardly disturbs them at first, yet every weight learns from the first
    step. With strides the 3×3 convolution still sees the whole resolution.

    Args:
        reduction: r, the divisor of the channels; at least one is left.
        motion: ``"channelwise"`` or ``"ordinary"`` 3×3 convolution (Table 10).
        kernels: ``"learned"``, or ``"frequency"`` for F(t) - F(t+1) (Table 8).
        strides: stride in both directions of space.
        causal: each frame is compared with the one before (see :class:`MotionDifference`).

    Input shape: (B, T, H, W, C); C must be known. Output shape: (B, T, ceil(H / strides), ceil(W / strides), C).
    """

    def __init__(self, reduction=16, motion="channelwise", kernels="learned", strides=1, causal=False, **kwargs):
        super().__init__(**kwargs)
        check_count("reduction", reduction)
        check_choice("motion", motion, ("channelwise", "ordinary"))
        check_choice("kernels", kernels, ("learned", "frequency"))
        self.reduction = reduction
        self.motion = motion
        self.kernels = kernels
        self.strides = strides
        self.causal = causal
        kernel = motion if kernels == "learned" else "frequency"
        self.difference = MotionDifference(kernel, strides, causal, dtype=self.dtype_policy, name="difference")

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))
        channels, policy = input_shape[-1], self.dtype_policy
        reduced = max(channels // self.reduction, 1)
        # On the last axis alone a dense layer is a 1×1 convolution.
        self.reduce = keras.layers.Dense(reduced, use_bias=False, dtype=policy, name="reduce")
        self.restore = ConvBN(channels, 1, activation=None, dtype=policy, name="restore")
        self.restore.bn.gamma_initializer = keras.initializers.Constant(0.1)
        shape = input_shape
        for layer in (self.reduce, self.difference, self.restore):
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def call(self, inputs, training=None):
        difference = self.difference(self.reduce(inputs))  # (B, T, H', W', C / reduction)
        return self.restore(difference, training=training)  # (B, T, H', W', C)

    def state_shapes(self, input_shape):
        """{name: shape} of the state of :meth:`step` for frames of a shape."""
        return self.difference.state_shapes(self.reduce.compute_output_shape(input_shape))

    def step(self, frame, state, count):
        """The next frame (B, 1, H, W, C) of a stream: (output, new state). See :mod:`keras_stss.streaming`."""
        difference, state = self.difference.step(self.reduce(frame), state, count)
        return self.restore(difference, training=False), state

    def motion_features(self, inputs):
        """{"motion": H of eq. 2, (B, T, H', W', C / reduction)} of arrays or Keras tensors."""
        return {"motion": self.difference(self.reduce(inputs))}

    def compute_output_shape(self, input_shape):
        return self.difference.compute_output_shape(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "reduction": self.reduction,
            "motion": self.motion,
            "kernels": self.kernels,
            "strides": self.strides,
            "causal": self.causal,
        }
