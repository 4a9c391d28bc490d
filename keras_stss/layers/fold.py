"""The one place where leading axes (time among them) are folded into the batch of a 2-D layer."""

from keras import ops

from keras_stss.ops.sizes import sizes


def fold(tensor):
    """(…, H, W, C) → (N, H, W, C), N the product of all leading axes."""
    count = 1
    for size in sizes(tensor)[:-3]:
        count = count * size
    return ops.reshape(tensor, (count, *sizes(tensor)[-3:]))


def unfold(folded, like):
    """(N, H', W', C') → (…, H', W', C') with the leading axes of the tensor ``like``."""
    return ops.reshape(folded, (*sizes(like)[:-3], *sizes(folded)[-3:]))
