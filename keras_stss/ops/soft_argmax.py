"""The mean place in a window, weighed by a softmax."""

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
    weights = ops.reshape(weights, (-1, rows, columns))
    vertical = _mean_place(ops.sum(weights, axis=2), rows)  # (N,)
    horizontal = _mean_place(ops.sum(weights, axis=1), columns)
    return ops.stack([horizontal, vertical], axis=-1)


def _mean_place(weights, side):
    """(N, side) of weights → (N,): their mean place between -1 and 1, 0 in the middle."""
    radius = max(side // 2, 1)
    places = (ops.arange(side, dtype=weights.dtype) - side // 2) / radius
    return ops.sum(weights * places, axis=-1)
