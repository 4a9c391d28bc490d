"""Which frames of a clip the model sees: one from each of T equal segments."""

import numpy as np


def segment_indices(n, frames, rng=None):
    """Segment sampling (Wang et al., Temporal Segment Networks, ECCV 2016, as in Lin et al., TSM, ICCV 2019).

    Training (with ``rng``): segments of n // T frames, a random frame of each; the up to T - 1 frames that are left
    over at the end are not drawn from, as in the released code. Clips shorter than T: a random position in each of T
    equal segments of n / T < 1 frames, so that frames repeat evenly and their order is kept.

    Testing (without): the middle of each segment, ``int(tick / 2 + tick * i)`` with tick = n / T.

    Args:
        n: number of frames of the clip, at least 1.
        frames: T, number of indices wanted.
        rng: ``numpy.random.Generator`` for the training draw.

    Returns:
        int64 array (T,), values from 0 to n - 1 that never fall.
    """
    if n < 1 or frames < 1:
        raise ValueError(f"n and frames must be at least 1. Received: n={n}, frames={frames}")
    segments = np.arange(frames, dtype=np.int64)
    if rng is None:
        # Whole numbers: (2i + 1)n / 2T, where float arithmetic may fall just below an index.
        return (2 * segments + 1) * n // (2 * frames)
    if n >= frames:
        average = n // frames
        return segments * average + rng.integers(average, size=frames)
    return np.minimum(np.floor((segments + rng.random(frames)) * n / frames), n - 1).astype(np.int64)
