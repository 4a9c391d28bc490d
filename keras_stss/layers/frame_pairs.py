"""What lies between neighbouring frames, one entry for each frame."""

import keras
from keras import ops

from keras_stss.ops.sizes import check_shape, sizes


def frame_pairs(tensor):
    """Brings together what both frames of a pair say of it.

    Args:
        tensor: (B, T, H, W, L, …), measured on every frame against the next one (L = 1), or against the next one and
            the one before (L = 2).

    Returns:
        Tensor (B, max(T - 1, 1), H, W, L, …). Entry t is of frames t and t + 1: first what frame t says of t + 1,
        then what frame t + 1 says of t. A clip of one frame keeps what is there, which is for a pair that there is not.
    """
    time = sizes(tensor)[1]
    pairs = max(time - 1, 1) if isinstance(time, int) else ops.maximum(time - 1, 1)
    forward = tensor[:, :pairs, :, :, :1]
    if tensor.shape[4] == 1:
        return forward
    return ops.concatenate([forward, tensor[:, time - pairs :, :, :, 1:]], axis=4)  # (B, pairs, H, W, L, …)


def repeat_last(pairs, time):
    """(B, max(T - 1, 1), …) → (B, T, …): the last frame has no next one and repeats the pair before it."""
    return ops.concatenate([pairs, pairs[:, -1:]], axis=1)[:, :time]


@keras.saving.register_keras_serializable(package="keras_stss")
class FramePairs(keras.layers.Layer):
    """:func:`frame_pairs`, and :func:`repeat_last` after it, as one layer (MotionSqueeze, Kwon et al., section 3.1).

    Input and output shape: (B, T, H, W, L, …), L 1 or 2.
    """

    def build(self, input_shape):
        check_shape(input_shape[:5], "B T H W L", known=("L",))

    def call(self, inputs):
        return repeat_last(frame_pairs(inputs), sizes(inputs)[1])

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        # Keras refuses a policy as dtype where a layer does not say that its configuration is complete.
        return super().get_config()
