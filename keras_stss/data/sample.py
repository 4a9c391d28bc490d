"""Which frames of a video the model sees: one from each of T equal segments, or T of a dense window.

Both as in the TSN/TSM line of code: for training one random clip, for testing one clip, N clips that are spread evenly,
or N random ones.
"""

import numpy as np

from keras_stss.config.data import DENSE_WINDOW


def clip_indices(n, frames, sampling="segment", clips=1, rng=None):
    """The frames of one or more clips of a video.

    Args:
        n: number of frames of the video, at least 1.
        frames: T, number of frames of a clip.
        sampling: ``"segment"`` (:func:`segment_indices`) or ``"dense"`` (:func:`dense_indices`).
        clips: N, number of clips.
        rng: ``numpy.random.Generator``; with it, each clip is a random one of its own, as in training. Without, the
            clips are spread evenly and the first of ``segment`` is the one that a test with a single clip takes.

    Returns:
        int64 array (N, T), values from 0 to n - 1.
    """
    if sampling not in _SAMPLERS or clips < 1:
        raise ValueError(
            "sampling must be 'segment' or 'dense', and clips at least 1. "
            f"Received: sampling={sampling!r}, clips={clips}"
        )
    return np.stack([_SAMPLERS[sampling](n, frames, rng, clip, clips) for clip in range(clips)])


def segment_indices(n, frames, rng=None, clip=0, clips=1):
    """Segment sampling (Wang et al., Temporal Segment Networks, ECCV 2016, as in Lin et al., TSM, ICCV 2019).

    Training (with ``rng``): segments of n // T frames, a random frame of each; the up to T - 1 frames that are left
    over at the end are not drawn from, as in the released code. Clips shorter than T: a random position in each of T
    equal segments of n / T < 1 frames, so that frames repeat evenly and their order is kept. There, and in testing
    where n is no more than T, the released code takes the first frame T times, which shows no motion at all.

    Testing (without): the same place of each segment, ``int(tick * place + tick * i)`` with tick = n / T. The place of
    a single clip is 1/2, the middle; of two 1/2 and 0, as TSM samples twice; of N it is 1/2 + clip / N, less 1 where
    that is 1 or more.

    Args:
        n: number of frames of the clip, at least 1.
        frames: T, number of indices wanted.
        rng: ``numpy.random.Generator`` for the training draw.
        clip: which of the testing clips, from 0.
        clips: N, number of testing clips.

    Returns:
        int64 array (T,), values from 0 to n - 1 that never fall.
    """
    if n < 1 or frames < 1:
        raise ValueError(f"n and frames must be at least 1. Received: n={n}, frames={frames}")
    segments = np.arange(frames, dtype=np.int64)
    if rng is None:
        # Whole numbers, in steps of 1/2N of a segment: float arithmetic may fall just below an index.
        place = (clips + 2 * clip) % (2 * clips)
        return (2 * clips * segments + place) * n // (2 * clips * frames)
    if n >= frames:
        average = n // frames
        return segments * average + rng.integers(average, size=frames)
    return np.minimum(np.floor((segments + rng.random(frames)) * n / frames), n - 1).astype(np.int64)


def dense_indices(n, frames, rng=None, clip=0, clips=1):
    """Dense sampling (as I3D's, in the code of TSM; MotionSqueeze takes it for Kinetics and HMDB-51).

    Every (64 // T)-th frame of a window of 64; a shorter video starts again from its beginning, so that indices may
    fall. Training (with ``rng``): the window starts anywhere, but the released code never draws the last start.
    Testing (without): N starts from the first to the last possible one in equal steps; that of a single clip, for
    which the released code has no rule but a random draw, lies in the middle.

    Args:
        n: number of frames of the video, at least 1.
        frames: T, number of indices wanted, at most 64.
        rng: ``numpy.random.Generator`` for the training draw.
        clip: which of the testing clips, from 0.
        clips: N, number of testing clips.

    Returns:
        int64 array (T,), values from 0 to n - 1.
    """
    if n < 1 or not 1 <= frames <= DENSE_WINDOW:
        raise ValueError(f"n must be at least 1 and frames from 1 to {DENSE_WINDOW}. Received: n={n}, frames={frames}")
    last = max(n - DENSE_WINDOW, 0)
    if rng is not None:
        start = rng.integers(last) if last else 0
    else:
        start = clip * last // (clips - 1) if clips > 1 else last // 2
    return (start + np.arange(frames, dtype=np.int64) * (DENSE_WINDOW // frames)) % n


_SAMPLERS = {"segment": segment_indices, "dense": dense_indices}
