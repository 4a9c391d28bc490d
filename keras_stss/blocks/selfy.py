"""The SELFY block: learned motion from spatio-temporal self-similarity."""

import keras
from keras import ops

from keras_stss.layers import (
    ConvBN,
    ConvExtractor,
    ConvIntegrator,
    FCIntegrator,
    KernelSoftArgmaxExtractor,
    MLPExtractor,
    MLPIntegrator,
    ResizeFrames,
    SoftArgmaxExtractor,
    SpatioTemporalSelfSimilarity,
)
from keras_stss.layers.integrate import check_integration
from keras_stss.layers.resize import back, check_strides, scale_and_strides
from keras_stss.ops.sizes import check_shape

#: What draws features from the volume; those without weights take no channels.
SQUEEZES = {"soft_argmax": SoftArgmaxExtractor, "kernel_soft_argmax": KernelSoftArgmaxExtractor}
EXTRACTIONS = ("conv", "conv3d", "mlp", *SQUEEZES)
INTEGRATIONS = {"conv": ConvIntegrator, "mlp": MLPIntegrator, "fc": FCIntegrator}
OUTPUTS = ("r+v", "r", "v")


@keras.saving.register_keras_serializable(package="keras_stss")
class SELFYBlock(keras.layers.Layer):
    """Transform → extract → integrate, added to the input (SELFY, Kwon et al., section 3.2).

    Z = ReLU(F* · Wθ) + V (eq. 9), or Z = ReLU(F* · Wθ + V) with ``variant="released"``, where V is the input and
    F* the integrated motion features of its self-similarity. ``integration="fc"`` is the paper's SELFY-s (Fig. 4b).

    Args:
        temporal_offsets: offsets l in frames; the papers use -2…2 for 8 and -4…4 for 16 frames.
        window: (U, V) in positions of the strided map, odd.
        similarity: ``"cosine"``, ``"dot"`` or ``"embedded_gaussian"`` (Table 8; there with 32 channels).
        channels: channels of the features that are compared.
        strides: from the input to the map that is compared: 1 or 2 is the stride of a 3×3 convolution; with 4 means of
            2×2 positions are taken before one of stride 2, with 0.5 every position is repeated before one of stride 1,
            and the result is averaged. The paper only says that all maps are brought to 14×14 (Table 7f).
        extraction: ``"conv"``, ``"conv3d"`` (3×3×3 kernels, Table 7c), ``"mlp"``, ``"soft_argmax"`` (Table 3b) or
            ``"kernel_soft_argmax"`` (Table 7b).
        extraction_channels: outputs of the extraction's layers; None for (4, 16, 64, 64), four of 64 with ``"mlp"``.
            The soft-argmaxes have none.
        integration: ``"conv"``, ``"mlp"`` or ``"fc"`` (Table 3b).
        integration_channels: outputs of the layers before the last; None for four of 64. ``"fc"`` has none.
        output: ``"r+v"``; ``"r"``, ReLU(F* · Wθ) alone; or ``"v"``, the input as it is, without weights (Table 7e).
        implementation: see :func:`keras_stss.ops.stss`; extraction is native on the CPU unless it says ``"reference"``.
        variant: ``"paper"``, or ``"released"`` to match the authors' code (see ``ConvIntegrator``), which has
            convolutions alone and adds the input.

    Input and output shape: (B, T, H, W, C); C must be known.
    """

    def __init__(
        self,
        temporal_offsets=(-2, -1, 0, 1, 2),
        window=(9, 9),
        similarity="cosine",
        channels=128,
        strides=2,
        extraction="conv",
        extraction_channels=None,
        integration="conv",
        integration_channels=None,
        output="r+v",
        implementation="auto",
        variant="paper",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_strides(strides)
        _check_form(extraction, extraction_channels, integration, integration_channels, output, variant)
        self.temporal_offsets = temporal_offsets
        self.window = window
        self.similarity = similarity
        self.channels = channels
        self.strides = strides
        self.extraction = extraction
        self.extraction_channels = extraction_channels
        self.integration = integration
        self.integration_channels = integration_channels
        self.result = output  # Keras has an ``output`` of its own
        self.implementation = implementation
        self.variant = variant
        if output != "v":
            self._make_layers()

    def _make_layers(self):
        """All but the last, which needs to know the input's channels."""
        policy = self.dtype_policy
        scale, steps = scale_and_strides(self.strides)
        self.resize = ResizeFrames(scale, dtype=policy, name="resize")
        self.reduce = ConvBN(self.channels, 3, steps, dtype=policy, name="reduce")
        self.similarity_layer = SpatioTemporalSelfSimilarity(
            self.temporal_offsets, self.window, self.similarity, self.implementation, dtype=policy, name="similarity"
        )
        options = {"dtype": policy, "name": "extract"}
        if self.extraction_channels is not None:
            options["channels"] = self.extraction_channels
        if self.extraction in SQUEEZES:
            self.extract = SQUEEZES[self.extraction](**options)
        elif self.extraction == "mlp":
            self.extract = MLPExtractor(**options)
        else:
            # The kernels of extraction are for the CPU alone: a native block on a GPU has the reference here.
            form = "reference" if self.implementation == "reference" else "auto"
            self.extract = ConvExtractor(implementation=form, depth=3 if self.extraction == "conv3d" else 1, **options)

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))
        if self.result == "v":
            return
        options = {"upsample": max(int(self.strides), 1), "dtype": self.dtype_policy, "name": "integrate"}
        if self.integration_channels is not None:
            options["channels"] = self.integration_channels
        if self.integration == "conv":
            options["variant"] = self.variant
        self.integrate = INTEGRATIONS[self.integration](input_shape[-1], **options)
        shape = input_shape
        for layer in (self.resize, self.reduce, self.similarity_layer, self.extract, self.integrate):
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def call(self, inputs, training=None):
        if self.result == "v":
            return inputs
        return self._moved(inputs, self._volume(inputs, training), training)

    def _moved(self, inputs, volume, training):
        """Extract and integrate: the volume (B, T, H', W', L, U, V) of inputs (B, T, H, W, C) → the block's output."""
        extracted = self.extract(volume, training=training)  # (B, T, H', W', L, C_F)
        motion = self.integrate(extracted, training=training)  # (B, T, sH', sW', C)
        motion = back(motion, self.strides, like=inputs)
        if self.result == "r":
            return motion
        return motion + inputs if self.variant == "paper" else ops.relu(motion + inputs)

    def _volume(self, inputs, training):
        return self.similarity_layer(self._reduced(inputs, training))

    def _reduced(self, inputs, training):
        return self.reduce(self.resize(inputs), training=training)

    @property
    def causal(self):
        """Whether no frame is compared with a later one."""
        return max(self.temporal_offsets) <= 0 or self.result == "v"

    def state_shapes(self, input_shape):
        """{name: shape} of the state of :meth:`step` for frames of a shape."""
        if self.result == "v":
            return {}
        reduced = self.reduce.compute_output_shape(self.resize.compute_output_shape(input_shape))
        return self.similarity_layer.state_shapes(reduced)

    def step(self, frame, state, count):
        """The next frame (B, 1, H, W, C) of a stream: (output, new state). See :mod:`keras_stss.streaming`."""
        if self.result == "v":
            return frame, {}
        volume, state = self.similarity_layer.step(self._reduced(frame, training=False), state, count)
        return self._moved(frame, volume, training=False), state

    def motion_features(self, inputs):
        """What the block sees, in inference.

        Args:
            inputs: array or KerasTensor (B, T, H, W, C).

        Returns:
            dict of ``"similarity"`` (B, T, H', W', L, U, V); ``"displacement"`` (B, T, H', W', L, 2), its soft-argmax,
            horizontal and vertical, in positions of the map that is compared; and ``"confidence"``
            (B, T, H', W', L, 1), its maximum. Without anything for ``output="v"``.
        """
        if self.result == "v":
            return {}
        if not self.built:
            self.build(inputs.shape)
        volume = self._volume(inputs, training=False)
        if self.extraction in SQUEEZES:
            squeezed = self.extract(volume)
        elif self.similarity == "embedded_gaussian":
            # Already weights that a softmax gave; zeros, outside the clip, stay next to none.
            squeezed = SoftArgmaxExtractor(1.0, dtype="float32")(ops.log(ops.cast(volume, "float32") + 1e-30))
        else:
            squeezed = SoftArgmaxExtractor(dtype="float32")(volume)
        largest = ops.convert_to_tensor([self.window[1] // 2, self.window[0] // 2], "float32")
        return {
            "similarity": volume,
            "displacement": ops.multiply(squeezed[..., :2], largest),
            "confidence": ops.expand_dims(ops.max(volume, axis=(-2, -1)), -1),
        }

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "temporal_offsets": self.temporal_offsets,
            "window": self.window,
            "similarity": self.similarity,
            "channels": self.channels,
            "strides": self.strides,
            "extraction": self.extraction,
            "extraction_channels": self.extraction_channels,
            "integration": self.integration,
            "integration_channels": self.integration_channels,
            "output": self.result,
            "implementation": self.implementation,
            "variant": self.variant,
        }


def _check_form(extraction, extraction_channels, integration, integration_channels, output, variant):
    """Raises ValueError for parts of a block that do not exist or do not go together."""
    chosen = {"extraction": (extraction, EXTRACTIONS), "integration": (integration, tuple(INTEGRATIONS))}
    for name, (value, known) in {**chosen, "output": (output, OUTPUTS)}.items():
        if value not in known:
            raise ValueError(f"{name} must be one of {known}. Received: {name}={value!r}")
    if extraction in SQUEEZES and extraction_channels is not None:
        raise ValueError(
            f"extraction={extraction!r} has no channels to choose. Received: extraction_channels={extraction_channels}"
        )
    if integration == "fc" and integration_channels is not None:
        raise ValueError(
            f"integration='fc' has no layers before its last. Received: integration_channels={integration_channels}"
        )
    check_integration((0,) if integration_channels is None else integration_channels, variant)
    if variant == "released" and (extraction, integration, output) != ("conv", "conv", "r+v"):
        raise ValueError(
            "variant='released' has extraction and integration 'conv' and output 'r+v'. Received: "
            f"extraction={extraction!r}, integration={integration!r}, output={output!r}"
        )
