"""Convolutions over tiny maps on the CPU: native steps of which :class:`keras_stss.layers.ConvExtractor` is made.

What they compute is defined by :class:`keras_stss.layers.MapConvBN`, which runs where they cannot: the function
``dispatch.use_native(implementation, "map_conv")`` tells. Between two convolutions the maps stay in the packed form of
the native kernels, and neither a normalised nor an activated map is ever written to memory.
"""

from typing import Any, NamedTuple


class PackedMaps(NamedTuple):
    """Maps between two convolutions: ReLU(values · scale + shift), or the values themselves where scale is None."""

    values: Any  # (blocks, U, V, C, lanes) float32
    maps: Any  # their number, a scalar
    like: Any  # the tensor (…, U, V, C) that they came from
    scale: Any = None  # (C,)
    shift: Any = None  # (C,)


def fits_stack(layers):
    """Whether that many convolutions are one native operation."""
    from keras_stss.ops.native import map_conv

    return layers <= map_conv.MOST_LAYERS


def stack(maps, kernels, shifts, strides, paddings):
    """Convolutions in a row, each followed by a shift per filter and ReLU.

    Args:
        maps: (…, U, V, C), float32, float16 or bfloat16.
        kernels: float32 tensors (height, width, channels, filters), normalisation folded in; at most 16.
        shifts: float32 tensors (filters,).
        strides: pairs (vertical, horizontal), one a convolution.
        paddings: pairs: zeros above and below, zeros on the left and on the right.

    Returns:
        (…, U', V', filters) of the maps' dtype.
    """
    from keras_stss.ops.native import map_conv

    return map_conv.stack(maps, kernels, shifts, strides, paddings)


def pack(maps):
    """Maps (…, U, V, C) → :class:`PackedMaps`."""
    from keras_stss.ops.native import map_conv

    return PackedMaps(map_conv.pack(maps), map_conv.count(maps), maps)


def conv(packed, kernel, strides, padding, statistics):
    """Convolution of packed maps.

    Args:
        packed: :class:`PackedMaps`.
        kernel: float32 (height, width, channels, filters).
        strides: pair (vertical, horizontal).
        padding: pair: zeros above and below, zeros on the left and on the right.
        statistics: whether mean and variance are wanted.

    Returns:
        :class:`PackedMaps` without an activation; mean and biased variance (filters,) over all maps and positions,
        zeros where there are no maps.
    """
    from keras_stss.ops.native import map_conv

    values, mean, variance = map_conv.conv(
        packed.values, packed.scale, packed.shift, kernel, packed.maps, strides, padding, statistics
    )
    return PackedMaps(values, packed.maps, packed.like), mean, variance


def finish(packed):
    """:class:`PackedMaps` with an activation → (…, U', V', F) of the dtype they came in."""
    from keras_stss.ops.native import map_conv

    return map_conv.finish(packed.values, packed.scale, packed.shift, packed.like)
