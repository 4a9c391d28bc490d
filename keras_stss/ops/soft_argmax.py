"""The mean place in a window, weighed by a softmax."""

import numpy as np
from keras import ops

from keras_stss.ops.sizes import sizes


def soft_argmax(volume, temperature=0.01):
    """Displacement of a similarity volume: the mean of (u, v) under softmax(S / temperature) (SELFY, eq. 2).

    Args:
        volume: floating-point tensor (…, U, V), U and V known. Nothing is rectified and no kernel laid over it:
            for that see :func:`keras_stss.ops.kernel_soft_argmax`.
        temperature: divisor of the scores.

    Returns:
        Tensor (…, 2): horizontal and vertical displacement divided by the largest one, V // 2 and U // 2 (so in
        [-1, 1]; 0 for a side of 1).
    """
    *lead, rows, columns = sizes(volume)
    return ops.reshape(mean_displacement(ops.reshape(volume, (-1, rows * columns)), rows, temperature), (*lead, 2))


def mean_displacement(scores, rows, temperature):
    """(N, U·V) → (N, 2), where U is ``rows``."""
    columns = scores.shape[-1] // rows
    # Keras warns of a softmax over a single element.
    weights = ops.softmax(scores / temperature, axis=-1) if scores.shape[-1] > 1 else ops.ones_like(scores)
    # Along the flat window: of a sum over columns, weighed by row and summed, OpenVINO makes another number.
    down, right = np.repeat(_places(rows), columns), np.tile(_places(columns), rows)  # (U·V,)
    return ops.stack([_weighed_sum(weights, right), _weighed_sum(weights, down)], axis=-1)


def _places(side):
    """Places along a side, between -1 and 1, 0 in the middle."""
    return (np.arange(side) - side // 2) / max(side // 2, 1)


def _weighed_sum(weights, places):
    """(N, U·V) → (N,)"""
    return ops.sum(weights * ops.convert_to_tensor(places, dtype=weights.dtype), axis=-1)
