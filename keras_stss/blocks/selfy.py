"""The SELFY block: learned motion from spatio-temporal self-similarity."""

import keras
from keras import ops

from keras_stss.layers import ConvBN, ConvExtractor, ConvIntegrator, SpatioTemporalSelfSimilarity
from keras_stss.layers.integrate import check_integration
from keras_stss.ops.sizes import check_shape, sizes


@keras.saving.register_keras_serializable(package="keras_stss")
class SELFYBlock(keras.layers.Layer):
    """Transform → extract → integrate, added to the input (SELFY, Kwon et al., section 3.2).

    Z = ReLU(F* · Wθ) + V (eq. 9), or Z = ReLU(F* · Wθ + V) with ``variant="released"``, where V is the input and
    F* the integrated motion features of its self-similarity.

    Args:
        temporal_offsets: offsets l in frames; the papers use -2…2 for 8 and -4…4 for 16 frames.
        window: (U, V) in positions of the strided map, odd.
        similarity: ``"cosine"`` or ``"dot"``.
        channels: channels of the features that are compared.
        strides: stride of the 3×3 convolution before the comparison, 1 or 2.
        extraction_channels: see :class:`keras_stss.layers.ConvExtractor`.
        integration_channels: see :class:`keras_stss.layers.ConvIntegrator`.
        implementation: see :func:`keras_stss.ops.stss`; extraction is native on the CPU unless it says ``"reference"``.
        variant: ``"paper"``, or ``"released"`` to match the authors' code (see ``ConvIntegrator``).

    Input and output shape: (B, T, H, W, C); C must be known.
    """

    def __init__(
        self,
        temporal_offsets=(-2, -1, 0, 1, 2),
        window=(9, 9),
        similarity="cosine",
        channels=128,
        strides=2,
        extraction_channels=(4, 16, 64, 64),
        integration_channels=(64, 64, 64, 64),
        implementation="auto",
        variant="paper",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if strides not in (1, 2):
            raise ValueError(f"strides must be 1 or 2. Received: strides={strides}")
        check_integration(integration_channels, variant)
        self.temporal_offsets = temporal_offsets
        self.window = window
        self.similarity = similarity
        self.channels = channels
        self.strides = strides
        self.extraction_channels = extraction_channels
        self.integration_channels = integration_channels
        self.implementation = implementation
        self.variant = variant
        policy = self.dtype_policy
        self.reduce = ConvBN(channels, 3, strides, dtype=policy, name="reduce")
        self.similarity_layer = SpatioTemporalSelfSimilarity(
            temporal_offsets, window, similarity, implementation, dtype=policy, name="similarity"
        )
        # The kernels of extraction are for the CPU alone: a native block on a GPU has the reference here.
        extraction = "reference" if implementation == "reference" else "auto"
        self.extract = ConvExtractor(extraction_channels, extraction, dtype=policy, name="extract")

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))
        self.integrate = ConvIntegrator(
            input_shape[-1],
            self.integration_channels,
            upsample=self.strides,
            variant=self.variant,
            dtype=self.dtype_policy,
            name="integrate",
        )
        shape = input_shape
        for layer in (self.reduce, self.similarity_layer, self.extract, self.integrate):
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def call(self, inputs, training=None):
        features = self.reduce(inputs, training=training)  # (B, T, H', W', channels)
        volume = self.similarity_layer(features)  # (B, T, H', W', L, U, V)
        extracted = self.extract(volume, training=training)  # (B, T, H', W', L, C_F)
        motion = self.integrate(extracted, training=training)  # (B, T, 2H', 2W', C)
        _, _, height, width, _ = sizes(inputs)
        motion = motion[:, :, :height, :width]  # odd sizes leave one row or column over
        return motion + inputs if self.variant == "paper" else ops.relu(motion + inputs)

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
            "extraction_channels": self.extraction_channels,
            "integration_channels": self.integration_channels,
            "implementation": self.implementation,
            "variant": self.variant,
        }
