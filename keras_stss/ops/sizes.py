"""Sizes of tensors that may not be known before the graph runs."""

from keras import ops


def sizes(tensor):
    """Sizes as numbers where they are known, as scalars of the graph where not."""
    dynamic = ops.shape(tensor)
    return [known if known is not None else dynamic[axis] for axis, known in enumerate(tensor.shape)]
