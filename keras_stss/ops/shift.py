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
    n = channels_each_way
    _check(frames, n)
    # Whole parts are split, moved and joined: the gradient of overlapping slices would add up full-size tensors.
    later, earlier, rest = ops.split(frames, [n, 2 * n], axis=-1)  # (B, T, H, W, n), the same, (B, T, H, W, C - 2n)
    nothing = ops.zeros_like(later[:, :1])
    later = ops.concatenate([later[:, 1:], nothing], axis=1)
    return ops.concatenate([later, _from_before(earlier, nothing), rest], axis=-1)


def causal_shift(frames, channels, before=None):
    """Moves some channels from each frame to the next: the half of :func:`temporal_shift` that sees the past.

    The channels that :func:`temporal_shift` takes from frame t+1 stay, those that it takes from frame t-1 are the same
    here: so weights that were trained with both ways find the past where it was.

    Args:
        frames: tensor (B, T, H, W, C).
        channels: n; channels n to 2n - 1 take the value of frame t-1, the rest stay.
        before: tensor (B, 1, H, W, n), what enters the first frame; zeros without it.

    Returns:
        Two tensors: frames of the same shape and dtype, and what the last one leaves for the next, (B, 1, H, W, n).

    Raises:
        ValueError: as :func:`temporal_shift`.
    """
    n = channels
    _check(frames, n)
    stay, earlier, rest = ops.split(frames, [n, 2 * n], axis=-1)  # (B, T, H, W, n), the same, (B, T, H, W, C - 2n)
    before = ops.zeros_like(earlier[:, :1]) if before is None else before
    return ops.concatenate([stay, _from_before(earlier, before), rest], axis=-1), earlier[:, -1:]


def _from_before(frames, first):
    return ops.concatenate([first, frames[:, :-1]], axis=1)


def _check(frames, n):
    if len(frames.shape) != 5:
        raise ValueError(f"frames must have shape (B, T, H, W, C). Received: shape={tuple(frames.shape)}")
    if frames.shape[-1] < 2 * n:
        raise ValueError(f"cannot shift {n} channels each way. Received: channels={frames.shape[-1]}")
