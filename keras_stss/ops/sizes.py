"""Sizes of tensors that may not be known before the graph runs."""

from keras import ops


def check_shape(shape, axes, known=()):
    """Raises ValueError for a shape of another rank than ``axes``, or one in which an axis of ``known`` is open.

    Args:
        shape: tuple with None for unknown sizes.
        axes: names such as ``"B T H W C"``.
        known: names of axes whose size must be known.
    """
    names = axes.split()
    if len(shape) != len(names) or any(shape[names.index(name)] is None for name in known):
        need = f", {' and '.join(known)} known" if known else ""
        raise ValueError(f"the input must have shape ({', '.join(names)}){need}. Received: shape={tuple(shape)}")


def sizes(tensor):
    """Sizes as numbers where they are known, as scalars of the graph where not."""
    dynamic = ops.shape(tensor)
    return [known if known is not None else dynamic[axis] for axis, known in enumerate(tensor.shape)]


def rank(tensor):
    """Number of axes, or None where TensorFlow does not know it while it traces."""
    return tensor.shape.rank if hasattr(tensor.shape, "rank") else len(tensor.shape)
