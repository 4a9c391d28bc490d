"""Feature integration: motion features (L, C_F) back to the channels of the stream."""

import keras
from keras import ops

from keras_stss.layers.batch_norm import BatchNorm, fold_into
from keras_stss.layers.conv_bn import BN, ConvBN
from keras_stss.layers.fold import fold, unfold
from keras_stss.layers.resize import repeat
from keras_stss.ops.sizes import check_shape, sizes

VARIANTS = ("paper", "released")
FACTORS = (1, 2, 4)


def check_integration(channels, variant="paper"):
    """Raises ValueError for what :class:`ConvIntegrator` and :class:`MLPIntegrator` cannot be made of."""
    if not channels:
        raise ValueError(f"integration needs at least one layer. Received: channels={channels}")
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}. Received: variant={variant!r}")


def check_upsample(upsample):
    """Raises ValueError for a factor that integrators do not have."""
    if upsample not in FACTORS:
        raise ValueError(f"upsample must be one of {FACTORS}. Received: upsample={upsample}")


def enlarged(shape, factor, filters):
    """Shape (B, T, H, W, …) → (B, T, factor·H, factor·W, filters), where H and W may be None."""
    batch, time, height, width = shape[:4]
    return (batch, time, height and factor * height, width and factor * width, filters)


def join_offsets(features):
    """(B, T, H, W, L, C) → (B, T, H, W, L·C)."""
    *lead, offsets, channels = sizes(features)
    return ops.reshape(features, (*lead, offsets * channels))


@keras.saving.register_keras_serializable(package="keras_stss")
class FCIntegrator(keras.layers.Layer):
    """One 1×1×1 convolution over all offsets, batch normalisation and ReLU (SELFY, Table 3b, "FC"; eq. 9 alone).

    Args:
        filters: channels of the output.
        upsample: 1, 2 or 4, the factor from the features' H×W to the output's; nearest neighbours are repeated.

    Input shape: (B, T, H, W, L, C_F). Output shape: (B, T, upsample·H, upsample·W, filters).
    """

    def __init__(self, filters, upsample=1, **kwargs):
        super().__init__(**kwargs)
        check_upsample(upsample)
        self.filters = filters
        self.upsample = upsample
        self.fuse = ConvBN(filters, 1, dtype=self.dtype_policy, name="fuse")

    def build(self, input_shape):
        check_shape(input_shape, "B T H W L C", known=("L", "C"))
        self.fuse.build((*input_shape[:-2], input_shape[-2] * input_shape[-1]))

    def call(self, features, training=None):
        fused = self.fuse(join_offsets(features), training=training)  # (B, T, H, W, filters)
        return repeat(fused, self.upsample)

    def compute_output_shape(self, input_shape):
        return enlarged(input_shape, self.upsample, self.filters)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters, "upsample": self.upsample}


@keras.saving.register_keras_serializable(package="keras_stss")
class MLPIntegrator(FCIntegrator):
    """1×1×1 convolutions that see one offset each, then one over all offsets (SELFY, Table 3b, "MLP").

    Each with batch normalisation and ReLU. The paper gives neither their number nor their widths: as many and as wide
    as the spatial convolutions in their place (:class:`ConvIntegrator`).

    Args:
        filters: channels of the output.
        channels: outputs of the layers that see one offset.
        upsample: see :class:`FCIntegrator`.

    Input shape: (B, T, H, W, L, C_F). Output shape: (B, T, upsample·H, upsample·W, filters).
    """

    def __init__(self, filters, channels=(64, 64, 64, 64), upsample=1, **kwargs):
        super().__init__(filters, upsample, **kwargs)
        check_integration(channels)
        self.channels = channels
        self.convs = [
            ConvBN(width, 1, dtype=self.dtype_policy, name=f"conv{number}") for number, width in enumerate(channels)
        ]

    def build(self, input_shape):
        check_shape(input_shape, "B T H W L C", known=("L", "C"))
        shape = input_shape
        for conv in self.convs:
            conv.build(shape)
            shape = conv.compute_output_shape(shape)
        super().build(shape)

    def call(self, features, training=None):
        for conv in self.convs:
            features = conv(features, training=training)  # (B, T, H, W, L, C of the layer)
        return super().call(features, training)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


@keras.saving.register_keras_serializable(package="keras_stss")
class ConvIntegrator(keras.layers.Layer):
    """3×3 convolutions over (x, y), then over all offsets at once (SELFY, eq. 7 to 9).

    ``variant="paper"``: every convolution of ``channels`` sees one offset; (L, C) is flattened, and a 1×1×1
    convolution with batch normalisation and ReLU gives ``filters`` channels (eq. 9, before V is added); nearest
    neighbours are repeated by ``upsample`` (the paper does not say how).
    ``variant="released"``: as the authors' released code does it. The last convolution of ``channels`` sees
    the flattened (L, C); a 1×1×1 transposed convolution of stride ``upsample`` gives ``filters`` channels, so
    that rows and columns in between hold nothing but the normalisation's shift; the scale of that last
    normalisation starts at zero and no activation follows: the block adds V before its ReLU.

    Args:
        filters: channels of the output.
        channels: output channels of the 3×3 convolutions.
        upsample: 1, 2 or 4, the factor from the features' H×W to the output's.
        variant: ``"paper"`` or ``"released"``.

    Input shape: (B, T, H, W, L, C_F). Output shape: (B, T, upsample·H, upsample·W, filters).
    """

    def __init__(self, filters, channels=(64, 64, 64, 64), upsample=1, variant="paper", **kwargs):
        super().__init__(**kwargs)
        check_integration(channels, variant)
        check_upsample(upsample)
        self.filters = filters
        self.channels = channels
        self.upsample = upsample
        self.variant = variant
        policy = self.dtype_policy
        self.convs = [ConvBN(width, 3, dtype=policy, name=f"conv{number}") for number, width in enumerate(channels)]
        if variant == "paper":
            self.fuse = ConvBN(filters, 1, dtype=policy, name="fuse")
        else:
            self.project = keras.layers.Conv2D(filters, 1, use_bias=False, dtype=policy, name="project")
            self.bn = BatchNorm(**BN, gamma_initializer="zeros", dtype=policy, name="bn")

    def _per_offset(self):
        """The convolutions that see one offset; the others, if any, see all."""
        return self.convs if self.variant == "paper" else self.convs[:-1]

    def build(self, input_shape):
        check_shape(input_shape, "B T H W L C", known=("L", "C"))
        batch, time, height, width, offsets, channels = input_shape
        shape = (batch, time, offsets, height, width, channels)
        for conv in self._per_offset():
            conv.build(shape)
            shape = conv.compute_output_shape(shape)
        flat = (batch, time, height, width, offsets * shape[-1])
        if self.variant == "paper":
            self.fuse.build(flat)
        else:
            self.convs[-1].build(flat)
            self.project.build((None, height, width, self.channels[-1]))
            self.bn.build((None, None, None, self.filters))

    def call(self, features, training=None):
        maps = ops.transpose(features, (0, 1, 4, 2, 3, 5))  # (B, T, L, H, W, C_F)
        for conv in self._per_offset():
            maps = conv(maps, training=training)
        flat = join_offsets(ops.transpose(maps, (0, 1, 3, 4, 2, 5)))  # (B, T, H, W, L·C*)
        if self.variant == "paper":
            return repeat(self.fuse(flat, training=training), self.upsample)
        fused = self.convs[-1](flat, training=training)  # (B, T, H, W, C*)
        spread = self._spread(self.project(fold(fused)))  # (BT, sH, sW, filters)
        return unfold(self.bn(spread, training=training), like=fused)  # (B, T, sH, sW, filters)

    def _spread(self, maps):
        """(N, H, W, C) → (N, sH, sW, C) with zeros between rows and columns: what a 1×1 kernel of stride s leaves."""
        if self.upsample == 1:
            return maps
        count, height, width, channels = sizes(maps)
        pads, wide = [(0, 0), (0, self.upsample - 1), (0, 0)], self.upsample * width
        # Side after side: LiteRT pads five axes at most.
        cells = ops.pad(ops.reshape(maps, (count * height * width, 1, channels)), pads)  # (NHW, s, C)
        rows = ops.pad(ops.reshape(cells, (count * height, 1, wide * channels)), pads)  # (NH, s, sW·C)
        return ops.reshape(rows, (count, self.upsample * height, wide, channels))

    def fold_batch_norm(self):
        """Puts its own normalisation's scale, if it has one, into the projection before it."""
        if self.variant == "released":
            # What is spread between the two is zeros, which no scale changes.
            fold_into(self.project.kernel, self.bn)

    def compute_output_shape(self, input_shape):
        return enlarged(input_shape, self.upsample, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "channels": self.channels,
            "upsample": self.upsample,
            "variant": self.variant,
        }
