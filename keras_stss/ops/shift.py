"""Temporal shift."""

from keras import ops


def temporal_shift(frames, channels_each_way):
    """Moves some channels by one frame (TSM, Lin et al., ICCV 2019, section 3).

    Args:
        frames: tensor (B, T, H, W, C).
        channels_each_way: n; the first n channels take the value of frame t+1, the next n that of frame t-1, the
            rest stay. Zeros enter at the clip's ends.

    Returns:
        Tensor of the same shape and dtype.

    Raises:
        ValueError: where C < 2n or the rank is not 5.
    """
    if len(frames.shape) != 5:
        raise ValueError(f"frames must have shape (B, T, H, W, C). Received: shape={tuple(frames.shape)}")
    n = channels_each_way
    if frames.shape[-1] < 2 * n:
        raise ValueError(f"cannot shift {n} channels each way. Received: channels={frames.shape[-1]}")
    # Whole parts are split, moved and joined: the gradient of overlapping slices would add up full-size tensors.
    later, earlier, rest = ops.split(frames, [n, 2 * n], axis=-1)  # (B, T, H, W, n), the same, (B, T, H, W, C - 2n)
    nothing = ops.zeros_like(later[:, :1])
    later = ops.concatenate([later[:, 1:], nothing], axis=1)
    earlier = ops.concatenate([nothing, earlier[:, :-1]], axis=1)
    return ops.concatenate([later, earlier, rest], axis=-1)
