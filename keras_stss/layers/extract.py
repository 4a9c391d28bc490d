"""Feature extraction from self-similarity by convolution: (U, V) is consumed, L is kept."""

import keras
from keras import ops

from keras_stss.layers.conv_bn import pair
from keras_stss.layers.map_conv import MapConvBN
from keras_stss.ops import map_conv
from keras_stss.ops.dispatch import check_implementation, use_native
from keras_stss.ops.sizes import check_shape, sizes

#: Positions that halving leaves to the last kernel at least.
LEAST_WINDOW = 3


@keras.saving.register_keras_serializable(package="keras_stss")
class ConvExtractor(keras.layers.Layer):
    """Convolutions over (l, u, v), each with batch normalisation and ReLU (SELFY, Kwon et al., eq. 5 and 6).

    1×3×3 kernels as in most of the paper, or 3×3×3 (Table 7c) with zeros beyond the first and the last offset.
    Layers between the first and the last halve a side of the window as often, and as late, as leaves it at least 3
    positions; the last kernel, unpadded, has the size of what is left. So 9×9 → 9 → 5 → 3 → 1, as in the paper, with
    3×3 kernels throughout, 5 → 5 → 5 → 3 → 1, and 13 → 13 → 7 → 4 → 1, 17 → 17 → 9 → 5 → 1 with larger last ones. The
    paper does not say how the windows beside 9×9 are brought down; this is what its figures of Table 7d agree with.

    Args:
        channels: output channels of the layers; the last is C_F.
        implementation: ``"native"`` (CPU kernels that work on many maps at once), ``"reference"`` (:class:`MapConvBN`,
            any Keras backend and device) or ``"auto"``. The weights are the same.
        depth: 1 or 3, the kernels' size along l. With 3 a kernel has three times the input channels: those of the
            offsets before, at and after its place, in this order.

    Input shape: (B, T, H, W, L, U, V). Output shape: (B, T, H, W, L, C_F).
    """

    def __init__(self, channels=(4, 16, 64, 64), implementation="auto", depth=1, **kwargs):
        super().__init__(**kwargs)
        if not channels:
            raise ValueError(f"channels must name at least one layer. Received: channels={channels}")
        check_implementation(implementation)
        if depth not in (1, 3):
            raise ValueError(f"depth must be 1 or 3. Received: depth={depth}")
        self.channels = channels
        self.implementation = implementation
        self.depth = depth

    def build(self, input_shape):
        check_shape(input_shape, "B T H W L U V", known=("U", "V"))
        shape = (*input_shape, 1)
        steps = [window_strides(side, len(self.channels)) for side in input_shape[-2:]]
        self.convs = []
        for number, filters in enumerate(self.channels):
            last = number == len(self.channels) - 1
            conv = MapConvBN(
                filters,
                kernel_size=tuple(shape[-3:-1]) if last else 3,
                strides=(steps[0][number], steps[1][number]),
                padding="valid" if last else "same",
                dtype=self.dtype_policy,
                name=f"conv{number}",
            )
            shape = (*shape[:-1], self.depth * shape[-1])
            conv.build(shape)
            shape = conv.compute_output_shape(shape)
            self.convs.append(conv)

    def call(self, volume, training=None):
        maps = ops.expand_dims(volume, -1)  # (B, T, H, W, L, U, V, 1)
        native = use_native(self.implementation, "map_conv", keras.backend.standardize_dtype(maps.dtype))
        # The native form takes convolutions together, unless neighbouring offsets meet between them.
        together = [self.convs] if native and self.depth == 1 else [[conv] for conv in self.convs]
        for convs in together:
            if self.depth == 3:
                maps = _with_neighbours(maps)
            if not native:
                maps = convs[0](maps, training=training)
            elif _by_steps(convs, training):
                maps = _native_steps(convs, maps, training)
            else:
                maps = _native_stack(convs, maps)
        return ops.squeeze(maps, axis=(-3, -2))  # (B, T, H, W, L, C_F)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-2], self.channels[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "channels": self.channels,
            "implementation": self.implementation,
            "depth": self.depth,
        }


def window_strides(side, layers):
    """Strides of a number of convolutions along a side of the window, halving late (see :class:`ConvExtractor`)."""
    halvings, left = 0, (side + 1) // 2
    while left >= LEAST_WINDOW and halvings < layers - 2:
        halvings, left = halvings + 1, (left + 1) // 2
    return [2 if layers - 1 - halvings <= number < layers - 1 else 1 for number in range(layers)]


def _with_neighbours(maps):
    """(…, L, U, V, C) → (…, L, U, V, 3C): the maps of offset l - 1, l and l + 1, zeros where there is none."""
    *lead, offsets, rows, columns, channels = sizes(maps)
    flat = ops.reshape(maps, (-1, offsets, rows * columns, channels))  # (N, L, UV, C)
    padded = ops.pad(flat, ((0, 0), (1, 1), (0, 0), (0, 0)))
    joined = ops.concatenate([padded[:, :-2], flat, padded[:, 2:]], axis=-1)  # (N, L, UV, 3C)
    return ops.reshape(joined, (*lead, offsets, rows, columns, 3 * channels))


def _by_steps(convs, training):
    """Statistics need all maps of one layer before the next."""
    return any(conv.takes_statistics(training) for conv in convs) or not map_conv.fits_stack(len(convs))


def _native_stack(convs, maps):
    kernels, shifts = [], []
    for conv in convs:
        scale, shift = conv.scale_and_shift()
        kernels.append(_kernel(conv) * scale)  # (kh, kw, C, F)
        shifts.append(shift)  # (F,)
    strides, paddings = [pair(conv.strides) for conv in convs], [conv.radius for conv in convs]
    return map_conv.stack(maps, kernels, shifts, strides, paddings)


def _native_steps(convs, maps, training):
    packed = map_conv.pack(maps)
    for conv in convs:
        own = conv.takes_statistics(training)
        packed, *statistics = map_conv.conv(packed, _kernel(conv), pair(conv.strides), conv.radius, own)
        scale, shift = conv.scale_and_shift(*statistics) if own else conv.scale_and_shift()
        packed = packed._replace(scale=scale, shift=shift)
    return map_conv.finish(packed)


def _kernel(conv):
    """In the precision that the policy computes with, widened: what the reference multiplies with."""
    kernel = ops.cast(ops.convert_to_tensor(conv.kernel), conv.compute_dtype)
    return ops.cast(kernel, "float32")
