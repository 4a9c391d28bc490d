"""Clips -> batches: the endless training stream, the finite evaluation stream, and one clip for prediction.

Every random draw of training is a function of (seed, position) alone, so that the stream does not depend on the number
of threads, and a run that continues from a position sees the very same batches.
"""

import atexit
import contextlib
import logging
import threading
import time

import numpy as np
import tensorflow as tf

from keras_stss.config import DataConfig
from keras_stss.data.annotations import Clip, DataError
from keras_stss.data.augment import center_view, may_flip, random_view
from keras_stss.data.decode import ClipError, read_frames
from keras_stss.data.sample import segment_indices

logger = logging.getLogger(__name__)

# What a random generator is for; keeps their streams apart.
_ORDER, _SEGMENTS, _VIEW = range(3)
_SHOWN = 5


class TooManyUnreadable(DataError):
    """More clips than ``data.max_unreadable`` allows cannot be read."""


class Unreadable:
    """The clips of a set that could not be read: path -> reason. Safe to use from many threads.

    Args:
        clips: the set, over which the share is taken.
        max_share: ``data.max_unreadable``, from 0 to 1. A set without any readable clip is always too much.
    """

    def __init__(self, clips: list[Clip], max_share: float):
        self.total = len({clip.path for clip in clips})
        self.max_share = max_share
        self._reasons = {}
        self._lock = threading.Lock()

    def __len__(self):
        return len(self._reasons)

    def __contains__(self, path):
        return path in self._reasons

    @property
    def reasons(self) -> dict[str, str]:
        """A copy: path -> reason, in the order in which they were found."""
        with self._lock:
            return dict(self._reasons)

    def restore(self, reasons: dict[str, str]):
        """Takes over what was found before a run was interrupted."""
        with self._lock:
            self._reasons = {**reasons, **self._reasons}

    def record(self, path: str, reason: str):
        """Notes a clip, logs it the first time, and raises as :meth:`check` does."""
        with self._lock:
            is_new = path not in self._reasons
            self._reasons.setdefault(path, reason)
        if is_new:
            logger.warning("unreadable clip left out: %s: %s", path, reason)
        self.check()

    def check(self):
        """Raises :class:`TooManyUnreadable` where more than the allowed share is unreadable."""
        reasons = self.reasons
        count = len(reasons)
        if not count or (count / self.total <= self.max_share and count < self.total):
            return
        shown = [f"  {path}: {reason}" for path, reason in list(reasons.items())[:_SHOWN]]
        if count > len(shown):
            shown.append(f"  and {count - len(shown)} more")
        raise TooManyUnreadable(
            f"{count} of {self.total} clips cannot be read ({count / self.total:.1%}); "
            f"data.max_unreadable={self.max_share:g} allows {self.max_share:.1%}\n" + "\n".join(shown)
        )

    @contextlib.contextmanager
    def explained(self):
        """Around the use of a stream: where it fails because of unreadable clips, raises what :meth:`check` does."""
        try:
            yield
        except tf.errors.OpError:
            self.check()
            raise


def training_stream(
    clips: list[Clip],
    labels: list[str],
    data: DataConfig,
    batch_size: int,
    seed: int,
    start: int = 0,
    registry: Unreadable | None = None,
) -> tf.data.Dataset:
    """Random views without end.

    Position p stands for clip ``permutation(seed, p // N)[p % N]`` of the N clips. To continue a run, start at the last
    ``position`` of its last batch + 1. An unreadable clip is recorded and left out before batching, so batches are
    always full.

    Args:
        clips: the N training clips.
        labels: label texts; a clip whose text names a side or a turn is not mirrored.
        data: frames, resize, crop, scales, flip, workers and max_unreadable are read.
        batch_size: B.
        seed: not negative.
        start: first position.
        registry: where unreadable clips are noted (default: one of its own).

    Returns:
        A dataset of ``{"frames": uint8 (B, T, crop, crop, 3), "label": int32 (B,), "position": int64 (B,)}``. Where too
        many clips are unreadable, iterating raises a ``tf.errors.OpError``; ``registry.check()`` then raises the
        :class:`TooManyUnreadable` behind it.
    """
    if not clips:
        raise DataError("there is no training clip")
    registry = registry if registry is not None else Unreadable(clips, data.max_unreadable)
    may_mirror = [data.flip and may_flip(text) for text in labels]
    order = _Order(len(clips), seed)

    def load(position):
        clip = clips[order.clip(int(position))]
        frames = _frames_or_none(clip, data, registry, (seed, _SEGMENTS, int(position)))
        view_seed = np.random.default_rng((seed, _VIEW, int(position))).integers(2**31, size=2)
        return *_readable(frames, data), np.int32(clip.label), view_seed, np.bool_(may_mirror[clip.label])

    def sample(position):
        types = (tf.uint8, tf.bool, tf.int32, tf.int64, tf.bool)
        frames, is_readable, label, view_seed, flip = tf.numpy_function(_calls.guard(load), [position], types)
        frames, view_seed = tf.ensure_shape(frames, [data.frames, None, None, 3]), tf.ensure_shape(view_seed, [2])
        flip = tf.ensure_shape(flip, [])
        view = random_view(frames, view_seed, data.resize, data.crop, data.scales, flip)
        return tf.ensure_shape(is_readable, []), {
            "frames": view,
            "label": tf.ensure_shape(label, []),
            "position": position,
        }

    positions = tf.data.Dataset.counter(start)
    return _read(positions, sample, data).batch(batch_size, drop_remainder=True).prefetch(2)


def evaluation_stream(
    clips: list[Clip], data: DataConfig, batch_size: int, registry: Unreadable | None = None
) -> tf.data.Dataset:
    """The centre view of every clip, once and in order.

    An unreadable clip is recorded and left out. The last batch is filled up with zeros, index -1 and weight 0, so that
    shapes are static.

    Args:
        clips: the clips to test on.
        data: frames, resize, crop, workers and max_unreadable are read.
        batch_size: B.
        registry: where unreadable clips are noted (default: one of its own).

    Returns:
        A dataset of ``{"frames": uint8 (B, T, crop, crop, 3), "label": int32 (B,), "index": int64 (B,) into clips,
        "weight": float32 (B,)}``. Too many unreadable clips: as in :func:`training_stream`.
    """
    if not clips:
        raise DataError("there is no clip to evaluate")
    registry = registry if registry is not None else Unreadable(clips, data.max_unreadable)

    def load(index):
        clip = clips[int(index)]
        frames = _frames_or_none(clip, data, registry)
        return *_readable(frames, data), np.int32(clip.label)

    def sample(index):
        frames, is_readable, label = tf.numpy_function(_calls.guard(load), [index], (tf.uint8, tf.bool, tf.int32))
        frames = tf.ensure_shape(frames, [data.frames, None, None, 3])
        return tf.ensure_shape(is_readable, []), {
            "frames": center_view(frames, data.resize, data.crop),
            "label": tf.ensure_shape(label, []),
            "index": index,
            "weight": tf.constant(1.0),
        }

    def fill(batch):
        missing = batch_size - tf.shape(batch["index"])[0]
        return {
            name: tf.ensure_shape(_fill(values, missing, -1 if name == "index" else 0), [batch_size, *values.shape[1:]])
            for name, values in batch.items()
        }

    indices = tf.data.Dataset.range(len(clips))
    return _read(indices, sample, data).batch(batch_size).map(fill).prefetch(2)


def read_clip(path: str, kind: str, data: DataConfig) -> np.ndarray:
    """One clip as evaluation sees it.

    Args:
        path: video file or folder of frames.
        kind: ``"video"`` or ``"frames"``.
        data: frames, resize and crop are read.

    Returns:
        uint8 array (T, crop, crop, 3).

    Raises:
        ClipError: where the clip cannot be read, with the reason.
    """
    frames = _read_segments(path, kind, data)
    with tf.device("CPU:0"):
        return center_view(frames, data.resize, data.crop).numpy()


class _Calls:
    """Python calls of all streams under way, so that they end before the interpreter does.

    A thread of TensorFlow that comes back for the interpreter's lock when the interpreter is going down never returns,
    and the process waits for it for ever. So at exit new calls fail at once, which fills the buffers of a stream that
    somebody still holds, and the last running ones are waited for.
    """

    _QUIET_SECONDS, _LONGEST_WAIT_SECONDS = 0.2, 60

    def __init__(self):
        self._lock = threading.Lock()
        self._running, self._last, self._is_closing = 0, 0.0, False
        atexit.register(self._close)

    def guard(self, function):
        """The function as one that counts as a call."""

        def guarded(*arguments):
            with self._one():
                return function(*arguments)

        return guarded

    @contextlib.contextmanager
    def _one(self):
        with self._lock:
            self._last = time.monotonic()
            if self._is_closing:
                raise RuntimeError("the interpreter is shutting down")
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._last = time.monotonic()

    def _close(self):
        with self._lock:
            self._is_closing = True
        give_up = time.monotonic() + self._LONGEST_WAIT_SECONDS
        while time.monotonic() < give_up:
            with self._lock:
                if not self._running and time.monotonic() - self._last > self._QUIET_SECONDS:
                    return
            time.sleep(0.02)


_calls = _Calls()


class _Order:
    """Which clip stands at a position: a new permutation of the clips each epoch, built once."""

    def __init__(self, count, seed):
        self.count, self.seed = count, seed
        self._permutations = {}
        self._lock = threading.Lock()

    def clip(self, position):
        epoch, place = divmod(position, self.count)
        with self._lock:
            if epoch not in self._permutations:
                # The one before stays: threads are still at its end while others begin the next.
                self._permutations = {old: self._permutations[old] for old in self._permutations if old == epoch - 1}
                generator = np.random.default_rng((self.seed, _ORDER, epoch))
                self._permutations[epoch] = generator.permutation(self.count)
            return int(self._permutations[epoch][place])


def _read(positions, sample, data):
    """Maps ``sample`` over the positions, as many at a time as there are workers, and drops what is not readable."""
    options = tf.data.Options()
    # Without a pool of its own, tf.data runs no more calls at a time than there are cores, however many workers.
    options.threading.private_threadpool_size = data.workers + 1
    samples = positions.map(sample, num_parallel_calls=data.workers, deterministic=True)
    readable = samples.filter(lambda is_readable, _: is_readable).map(lambda _, values: values)
    return readable.with_options(options)


def _read_segments(path, kind, data, entropy=None):
    # A generator for each choice: the decoder may ask again with another number of frames.
    return read_frames(
        path,
        kind,
        lambda n: segment_indices(n, data.frames, None if entropy is None else np.random.default_rng(entropy)),
    )


def _frames_or_none(clip, data, registry, entropy=None):
    if clip.path in registry:
        return None
    try:
        return _read_segments(clip.path, clip.kind, data, entropy)
    except ClipError as error:
        registry.record(clip.path, str(error))
    return None


def _readable(frames, data):
    """(frames, whether there are any): the smallest stand-in where there are none."""
    if frames is None:
        return np.zeros((data.frames, 1, 1, 3), np.uint8), np.bool_(False)
    return frames, np.bool_(True)


def _fill(values, missing, with_value):
    paddings = [[0, missing]] + [[0, 0]] * (values.shape.rank - 1)
    return tf.pad(values, paddings, constant_values=tf.cast(with_value, values.dtype))
