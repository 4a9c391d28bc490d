"""The MotionSqueeze block: motion from the displacement between neighbouring frames."""

import keras
from keras import ops

from keras_stss.layers import ConvBN, Displacement, SeparableConvBN, SpatioTemporalSelfSimilarity
from keras_stss.layers.frame_pairs import FramePairs, frame_pairs, repeat_last, where_begun, zeros_first
from keras_stss.ops.sizes import check_shape, sizes

TRANSFORMS = {"separable": SeparableConvBN, "conv": ConvBN}
FUSIONS = ("add", "multiply", "concat", "none")


@keras.saving.register_keras_serializable(package="keras_stss")
class MotionSqueezeBlock(keras.layers.Layer):
    """Reduce → correlate and squeeze → transform, fused with the input (MotionSqueeze, Kwon et al., section 3.1).

    F'(t) = F(t) + M(t) (eq. 6), where M(t) is made from the displacement and confidence between frames t and t+1
    (eq. 1 to 5) by convolutions. The last frame has no next one and repeats M of the frame before; a clip of one frame
    is taken to be at rest, with confidence 0. The rows of the paper's table 3 are ``sigma=None, confidence=False``
    (S), ``confidence=False`` (KS), the defaults (KS + CM) and ``backward=True`` (KS + CM + BD).

    Args:
        channels: channels of the features that are compared, made by a 1×1 convolution with batch normalisation and
            ReLU; None compares the input itself (MobileNet-V2). The paper says C/2, the released code takes 64.
        window: (U, V) in positions, odd.
        similarity: ``"cosine"`` as in the released code, or ``"dot"`` as in eq. 1.
        sigma: standard deviation of the kernel of the soft-argmax in positions; None for the plain soft-argmax.
        temperature: divisor of the scores in the soft-argmax.
        confidence: whether the largest similarity goes with the displacement, as a third channel.
        backward: whether M(t) also sees how frame t+1 moves back to frame t, at the positions of frame t+1.
        transform: ``"separable"``, or ``"conv"`` for standard convolutions with batch normalisation and ReLU (table 7).
        transform_kernels: kernel sizes of the transformation, one more than ``transform_channels``; None is 7, then 3.
        transform_channels: outputs of the transformation's convolutions but for the last, whose output has the
            input's channels.
        fusion: table 5. ``"add"``; ``"multiply"``; ``"concat"``: both, through a 1×1 convolution back to C channels
            (here with batch normalisation and ReLU, of which the paper says nothing); ``"none"``: M alone ("MS only").
        implementation: see :func:`keras_stss.ops.displacement`.
        causal: M(t) is made from frames t-1 and t, so that no frame sees a later one: measured on frame t against the
            one before, and turned round, which is where everything has come from, with the sign of a motion forwards in
            time as without ``causal``; with ``backward`` also on frame t-1, at its positions. The first frame has none
            before it: M is zero there.

    Input and output shape: (B, T, H, W, C); C must be known.
    """

    def __init__(
        self,
        channels=64,
        window=(15, 15),
        similarity="cosine",
        sigma=5.0,
        temperature=0.01,
        confidence=True,
        backward=False,
        transform="separable",
        transform_kernels=None,
        transform_channels=(16, 32, 64),
        fusion="add",
        implementation="auto",
        causal=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be positive, or None. Received: channels={channels}")
        check_transformation(transform, transform_kernels, transform_channels, fusion)
        self.channels = channels
        self.window = window
        self.similarity = similarity
        self.sigma = sigma
        self.temperature = temperature
        self.confidence = confidence
        self.backward = backward
        self.kind = transform
        self.transform_kernels = transform_kernels
        self.transform_channels = transform_channels
        self.fusion = fusion
        self.implementation = implementation
        self.causal = causal
        policy = self.dtype_policy
        partner = -1 if causal else 1
        offsets = (partner, -partner) if backward else (partner,)
        self.reduce = None if channels is None else ConvBN(channels, 1, dtype=policy, name="reduce")
        self.displacement = Displacement(
            offsets, window, similarity, sigma, temperature, implementation, dtype=policy, name="displacement"
        )

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))
        shape, policy = input_shape, self.dtype_policy
        if self.reduce is not None:
            self.reduce.build(shape)
            shape = self.reduce.compute_output_shape(shape)
        self.displacement.build(shape)
        offsets = self.displacement.temporal_offsets
        shape = (*input_shape[:4], len(offsets) * (3 if self.confidence else 2))
        kernels = self.transform_kernels or (7, *(3 for _ in self.transform_channels))
        self.transform = []
        for number, (filters, kernel) in enumerate(zip((*self.transform_channels, input_shape[-1]), kernels)):
            layer = TRANSFORMS[self.kind](filters, kernel, dtype=policy, name=f"transform{number}")
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
            self.transform.append(layer)
        if self.fusion == "concat":
            self.fuse = ConvBN(input_shape[-1], 1, dtype=policy, name="fuse")
            self.fuse.build((*input_shape[:4], 2 * input_shape[-1]))

    def call(self, inputs, training=None):
        features = inputs if self.reduce is None else self.reduce(inputs, training=training)  # (B, T, H, W, channels)
        motion = self._motion(features, training)  # (B, pairs, H, W, C)
        motion = (zeros_first if self.causal else repeat_last)(motion, sizes(inputs)[1])  # (B, T, H, W, C)
        return self._fused(inputs, motion, training)

    def _motion(self, features, training):
        """M of the pairs of neighbouring frames: (B, T, H, W, channels) → (B, max(T - 1, 1), H, W, C)."""
        # Frames that have a partner, and alone they, go through the transformation and its statistics.
        moved = frame_pairs(self.displacement(features), self.causal)  # (B, pairs, H, W, L, 3)
        moved = moved if self.confidence else moved[..., :2]
        if self.causal:
            moved = moved * ops.convert_to_tensor((-1.0, -1.0, 1.0)[: moved.shape[-1]], moved.dtype)
        batch, pairs, height, width, offsets, numbers = sizes(moved)
        motion = ops.reshape(moved, (batch, pairs, height, width, offsets * numbers))  # (B, pairs, H, W, L·3)
        for layer in self.transform:
            motion = layer(motion, training=training)  # (B, pairs, H, W, channels of the layer)
        return motion

    def _fused(self, inputs, motion, training):
        """Frames and their motion, both (B, T, H, W, C)."""
        if self.fusion == "none":
            return motion
        if self.fusion == "concat":
            return self.fuse(ops.concatenate([inputs, motion], axis=-1), training=training)  # (B, T, H, W, C)
        return inputs * motion if self.fusion == "multiply" else inputs + motion

    def state_shapes(self, input_shape):
        """{name: shape} of the state of :meth:`step` for frames of a shape: the features that are compared."""
        shape = input_shape if self.reduce is None else self.reduce.compute_output_shape(input_shape)
        return {"features": (input_shape[0], 1, *shape[2:])}

    def step(self, frame, state, count):
        """The next frame (B, 1, H, W, C) of a stream: (output, new state). See :mod:`keras_stss.streaming`."""
        features = frame if self.reduce is None else self.reduce(frame, training=False)  # (B, 1, H, W, channels)
        motion = self._motion(ops.concatenate([state["features"], features], axis=1), training=False)
        return self._fused(frame, where_begun(count, motion), training=False), {"features": features}

    def motion_features(self, inputs):
        """What the block sees of the motion, for arrays and for Keras tensors of a functional model.

        Returns:
            Dictionary of ``"similarity"`` (B, T, H, W, L, U, V), before the ReLU of the soft-argmax;
            ``"displacement"`` (B, T, H, W, L, 2), horizontal and vertical, in positions; ``"confidence"``
            (B, T, H, W, L, 1). Entry t is of frames t and t+1, the last repeats the one before, a clip of one frame
            has zeros. L is 1, or with ``backward`` 2: then the second is of frame t+1 against t. With ``causal`` entry
            t is of frames t and t-1, the first has zeros, and displacements are turned round.
        """
        features = inputs if self.reduce is None else self.reduce(inputs, training=False)
        offsets, policy = self.displacement.temporal_offsets, self.dtype_policy
        volume = SpatioTemporalSelfSimilarity(offsets, self.window, self.similarity, self.implementation, dtype=policy)(
            features
        )  # (B, T, H, W, L, U, V)
        moved = FramePairs(self.causal, dtype=policy)(self.displacement(features))  # (B, T, H, W, L, 3)
        largest = ops.cast(ops.convert_to_tensor([self.window[1] // 2, self.window[0] // 2]), moved.dtype)
        largest = -largest if self.causal else largest
        return {
            "similarity": FramePairs(self.causal, dtype=policy)(volume),
            "displacement": moved[..., :2] * largest,
            "confidence": moved[..., 2:],
        }

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
            "confidence": self.confidence,
            "backward": self.backward,
            "transform": self.kind,
            "transform_kernels": self.transform_kernels,
            "transform_channels": self.transform_channels,
            "fusion": self.fusion,
            "implementation": self.implementation,
            "causal": self.causal,
        }


def check_transformation(transform, kernels, channels, fusion):
    """Raises ValueError for a transformation or fusion that the block does not have."""
    if transform not in TRANSFORMS:
        raise ValueError(f"transform must be one of {tuple(TRANSFORMS)}. Received: transform={transform!r}")
    if kernels is not None and len(kernels) != len(channels) + 1:
        raise ValueError(
            f"transform_kernels must be one more than transform_channels={channels}, or None. "
            f"Received: transform_kernels={kernels}"
        )
    if fusion not in FUSIONS:
        raise ValueError(f"fusion must be one of {FUSIONS}. Received: fusion={fusion!r}")
