"""Feature integration: motion features (L, C_F) back to the channels of the stream."""

import keras
from keras import ops

from keras_stss.layers.conv_bn import BN, ConvBN
from keras_stss.layers.fold import fold, unfold
from keras_stss.ops.sizes import check_shape, sizes

VARIANTS = ("paper", "released")


def check_integration(channels, variant):
    """Raises ValueError for what :class:`ConvIntegrator` cannot be made of."""
    if not channels:
        raise ValueError(f"integration needs at least one layer. Received: channels={channels}")
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}. Received: variant={variant!r}")


@keras.saving.register_keras_serializable(package="keras_stss")
class ConvIntegrator(keras.layers.Layer):
    """3×3 convolutions over (x, y), then over all offsets at once (SELFY, eq. 7 to 9).

    ``variant="paper"``: every convolution of ``channels`` sees one offset; (L, C) is flattened, and a 1×1×1
    convolution with batch normalisation and ReLU gives ``filters`` channels (eq. 9, before V is added); nearest
    neighbours are repeated where ``upsample`` is 2 (the paper does not say how).
    ``variant="released"``: as the authors' released code does it. The last convolution of ``channels`` sees
    the flattened (L, C); a 1×1×1 transposed convolution of stride ``upsample`` gives ``filters`` channels, so
    that rows and columns in between hold nothing but the normalisation's shift; the scale of that last
    normalisation starts at zero and no activation follows: the block adds V before its ReLU.

    Args:
        filters: channels of the output.
        channels: output channels of the 3×3 convolutions.
        upsample: 1 or 2, the factor from the features' H×W to the output's.
        variant: ``"paper"`` or ``"released"``.

    Input shape: (B, T, H, W, L, C_F). Output shape: (B, T, upsample·H, upsample·W, filters).
    """

    def __init__(self, filters, channels=(64, 64, 64, 64), upsample=1, variant="paper", **kwargs):
        super().__init__(**kwargs)
        check_integration(channels, variant)
        if upsample not in (1, 2):
            raise ValueError(f"upsample must be 1 or 2. Received: upsample={upsample}")
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
            self.bn = keras.layers.BatchNormalization(**BN, gamma_initializer="zeros", dtype=policy, name="bn")

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
        maps = ops.transpose(maps, (0, 1, 3, 4, 2, 5))  # (B, T, H, W, L, C*)
        flat = ops.reshape(maps, (*sizes(maps)[:4], maps.shape[4] * maps.shape[5]))  # (B, T, H, W, L·C*)
        if self.variant == "paper":
            return self._repeat(self.fuse(flat, training=training))
        fused = self.convs[-1](flat, training=training)  # (B, T, H, W, C*)
        spread = self._spread(self.project(fold(fused)))  # (BT, sH, sW, filters)
        return unfold(self.bn(spread, training=training), like=fused)  # (B, T, sH, sW, filters)

    def _repeat(self, maps):
        if self.upsample == 1:
            return maps
        return ops.repeat(ops.repeat(maps, 2, axis=2), 2, axis=3)

    def _spread(self, maps):
        """(N, H, W, C) → (N, 2H, 2W, C) with zeros between rows and columns: what a 1×1 kernel of stride 2 leaves."""
        if self.upsample == 1:
            return maps
        count, height, width, channels = sizes(maps)
        cells = ops.reshape(maps, (count, height, 1, width, 1, channels))
        cells = ops.pad(cells, [(0, 0), (0, 0), (0, 1), (0, 0), (0, 1), (0, 0)])  # (N, H, 2, W, 2, C)
        return ops.reshape(cells, (count, 2 * height, 2 * width, channels))

    def compute_output_shape(self, input_shape):
        batch, time, height, width = input_shape[:4]
        return (batch, time, height and self.upsample * height, width and self.upsample * width, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "channels": self.channels,
            "upsample": self.upsample,
            "variant": self.variant,
        }
