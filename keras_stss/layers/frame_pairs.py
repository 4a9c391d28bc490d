"""What lies between neighbouring frames, one entry for each frame."""

import math

import keras
from keras import ops

from keras_stss.ops.sizes import check_shape, sizes


def frame_pairs(tensor, causal=False):
    """Brings together what both frames of a pair say of it.

    Args:
        tensor: (B, T, H, W, L, …), measured on every frame against the next one (L = 1), or against the next one and
            the one before (L = 2). With ``causal`` next and before are exchanged.
        causal: the later frame of a pair speaks first.

    Returns:
        Tensor (B, max(T - 1, 1), H, W, L, …). Entry t is of frames t and t + 1: first what frame t says of t + 1,
        then what frame t + 1 says of t; with ``causal`` the other way round. A clip of one frame keeps what is there,
        which is for a pair that there is not.
    """
    time = sizes(tensor)[1]
    pairs = max(time - 1, 1) if isinstance(time, int) else ops.maximum(time - 1, 1)
    earlier, later = slice(0, pairs), slice(time - pairs, None)
    first, second = (later, earlier) if causal else (earlier, later)
    own = tensor[:, first, :, :, :1]
    if tensor.shape[4] == 1:
        return own
    return ops.concatenate([own, tensor[:, second, :, :, 1:]], axis=4)  # (B, pairs, H, W, L, …)


def repeat_last(pairs, time):
    """(B, max(T - 1, 1), …) → (B, T, …): the last frame has no next one and repeats the pair before it."""
    return ops.concatenate([pairs, pairs[:, -1:]], axis=1)[:, :time]


def zeros_first(pairs, time):
    """(B, max(T - 1, 1), …) → (B, T, …): the first frame has none before it and gets zeros."""
    return ops.concatenate([ops.zeros_like(pairs[:, :1]), pairs], axis=1)[:, :time]


def where_begun(count, values, others=None):
    """Values (B, …) of clips that began ``count`` (B,) frames ago; where that is none, others (B, …), or zeros."""
    others = ops.zeros_like(values) if others is None else others
    shape = sizes(values)
    # Two axes, because LiteRT does not choose along five.
    values, others = (ops.reshape(each, (shape[0], math.prod(shape[1:]))) for each in (values, others))
    return ops.reshape(ops.where((count > 0)[:, None], values, others), shape)


@keras.saving.register_keras_serializable(package="keras_stss")
class FramePairs(keras.layers.Layer):
    """:func:`frame_pairs`, and :func:`repeat_last` after it, as one layer (MotionSqueeze, Kwon et al., section 3.1).

    Args:
        causal: entries belong to the later frames of the pairs, :func:`zeros_first`.

    Input and output shape: (B, T, H, W, L, …), L 1 or 2.
    """

    def __init__(self, causal=False, **kwargs):
        super().__init__(**kwargs)
        self.causal = causal

    def build(self, input_shape):
        check_shape(input_shape[:5], "B T H W L", known=("L",))

    def call(self, inputs):
        fill = zeros_first if self.causal else repeat_last
        return fill(frame_pairs(inputs, self.causal), sizes(inputs)[1])

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "causal": self.causal}
