"""Clips -> batches: the endless training stream, the finite evaluation stream, and one clip for prediction.

Every random draw of training is a function of (seed, position) alone, so that the stream does not depend on the number
of threads or shards, and a run that continues from a position sees the very same batches.
"""

import dataclasses
import threading

import numpy as np
import tensorflow as tf

from keras_stss.config import DataConfig
from keras_stss.data import decode
from keras_stss.data.annotations import Clip, DataError
from keras_stss.data.augment import (
    Mix,
    center_view,
    center_window,
    crop_views,
    cut,
    finish_view,
    fit,
    fold,
    may_flip,
    mix_draw,
    mix_pairs,
    training_view,
    training_window,
)
from keras_stss.data.calls import calls
from keras_stss.data.decode import ClipError
from keras_stss.data.sample import clip_indices
from keras_stss.data.shards import row_numbers, shard_rows, whole_pairs
from keras_stss.data.unreadable import TooManyUnreadable, Unreadable

__all__ = [
    "Mix",
    "Protocol",
    "TooManyUnreadable",
    "Unreadable",
    "evaluation_stream",
    "next_position",
    "read_clip",
    "read_view",
    "training_stream",
]

# What a random generator is for; keeps their streams apart.
_ORDER, _SEGMENTS, _VIEW, _STAND_IN, _TEST = range(5)
# What a view's seed is folded with for the mixing and for a second view; the augmentations use lower numbers.
_MIX, _SECOND = 16, 32
_LARGE = 150_000  # pixels; of larger frames, only the part that is shown is decoded


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What a model is tested on: V = clips * crops views of each video, whose scores are averaged.

    Args:
        clips: clips of a video, spread evenly (see :func:`keras_stss.data.sample.clip_indices`).
        crops: 1, 3, 5 or 10 of each (see :func:`keras_stss.data.augment.crop_views`).
        random: draw the clips as in training instead; the draws are a function of the seed and of the video's index.
        seed: of the draws, not negative.
    """

    clips: int = 1
    crops: int = 1
    random: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.clips < 1 or self.crops not in (1, 3, 5, 10):
            raise ValueError(
                f"clips must be at least 1, and crops 1, 3, 5 or 10. Received: clips={self.clips}, crops={self.crops}"
            )

    @property
    def views(self):
        """V, views of a video."""
        return self.clips * self.crops


def training_stream(
    clips: list[Clip],
    labels: list[str],
    data: DataConfig,
    batch_size: int,
    seed: int,
    start: int = 0,
    registry: Unreadable | None = None,
    *,
    shard: tuple[int, int] | None = None,
    views: int = 1,
    mix: Mix | None = None,
) -> tf.data.Dataset:
    """Random views without end.

    Position p stands for clip ``permutation(seed, p // N)[p % N]`` of the N clips. To continue a run, start where
    :func:`next_position` says. An unreadable clip is recorded and left out before batching, so batches are
    always full.

    The shards of a step together are the batch of the whole stream, row for row. There, an unreadable clip is not left
    out, or the shards would fall out of step: another clip, drawn for its position, stands in for it.

    Args:
        clips: the N training clips.
        labels: label texts; a clip whose text names a side or a turn is not mirrored.
        data: frames, sampling, resize, crop, scales, flip, augment, workers and max_unreadable are read.
        batch_size: B, over all shards.
        seed: not negative.
        start: first position; with shards, the same for all of them.
        registry: where unreadable clips are noted (default: one of its own).
        shard: (index, count): this stream gives part ``index`` of each batch (see :mod:`keras_stss.data.shards`).
        views: V, random views of the same frames of each clip; Twins Training takes 2. The first is that of a stream
            with one view.
        mix: mixup or CutMix of neighbouring rows, after all else. A shard whose part begins or ends between two
            neighbours reads the other one, too.

    Returns:
        A dataset of ``{"frames": uint8 (B, T, crop, crop, 3), "label": int32 (B,), "position": int64 (B,)}``; with more
        than one view frames are (B, V, T, crop, crop, 3); with ``mix`` there is ``"target": float32 (B, K)`` as well,
        the weights of the labels. Where too many clips are unreadable, iterating raises a ``tf.errors.OpError``;
        ``registry.check()`` then raises the :class:`TooManyUnreadable` behind it.
    """
    if not clips:
        raise DataError("there is no training clip")
    registry = registry if registry is not None else Unreadable(clips, data.max_unreadable)
    source = _Training(clips, labels, data, seed, registry, stands_in=shard is not None, views=views, mix=mix)
    first, rows = shard_rows(batch_size, shard or (0, 1))
    before, together = (first, rows) if mix is None else whole_pairs(first, rows, batch_size)
    positions = tf.data.Dataset.counter(start)
    if shard is not None:
        positions = row_numbers(batch_size, before, together).map(lambda number: start + number)
    batches = _read(positions, source.sample, data).batch(together, drop_remainder=True)
    if mix is not None:
        batches = batches.map(lambda batch: _mixed(batch, len(labels), slice(first - before, first - before + rows)))
    return batches.prefetch(2)


def next_position(position: int, positions, batch_size: int, shard: tuple[int, int] | None = None) -> int:
    """Where to start a training stream that shall go on behind a batch.

    Args:
        position: where that batch began: the stream's start, or what this function gave for the batch before.
        positions: ``"position"`` of the batch.
        batch_size: B, over all shards.
        shard: that of the stream. With shards no position is left out, and all go on at the same one.
    """
    return position + batch_size if shard is not None else int(np.max(positions)) + 1


def evaluation_stream(
    clips: list[Clip],
    data: DataConfig,
    batch_size: int,
    registry: Unreadable | None = None,
    *,
    protocol: Protocol | None = None,
    shard: tuple[int, int] | None = None,
) -> tf.data.Dataset:
    """The testing views of every clip, once and in order.

    An unreadable clip is recorded and left out; in a shard, its row stays and counts as filled up. The last batch is
    filled up with zeros, index -1 and weight 0, so that shapes are static and all shards have the same number of steps.

    Args:
        clips: the clips to test on.
        data: frames, sampling, resize, crop, workers and max_unreadable are read.
        batch_size: B, over all shards.
        registry: where unreadable clips are noted (default: one of its own).
        protocol: :class:`Protocol` (default: one clip, centre crop).
        shard: (index, count): this stream gives part ``index`` of each batch (see :mod:`keras_stss.data.shards`).

    Returns:
        A dataset of ``{"frames": uint8 (B, T, crop, crop, 3), "label": int32 (B,), "index": int64 (B,) into clips,
        "weight": float32 (B,)}``; where the protocol has V > 1 views, frames are (B, V, T, crop, crop, 3), clip by
        clip. Too many unreadable clips: as in :func:`training_stream`.
    """
    if not clips:
        raise DataError("there is no clip to evaluate")
    registry = registry if registry is not None else Unreadable(clips, data.max_unreadable)
    source = _Testing(clips, data, registry, protocol or Protocol(), keeps_rows=shard is not None)
    if shard is None:
        indices, rows = tf.data.Dataset.range(len(clips)), batch_size
    else:
        first, rows = shard_rows(batch_size, shard)
        indices = row_numbers(batch_size, first, rows, steps=-(-len(clips) // batch_size))
    return _read(indices, source.sample, data).batch(rows).map(lambda batch: _filled(batch, rows)).prefetch(2)


def read_clip(path: str, kind: str, data: DataConfig) -> np.ndarray:
    """One clip as evaluation sees it.

    Args:
        path: video file or folder of frames.
        kind: ``"video"`` or ``"frames"``.
        data: frames, sampling, resize and crop are read.

    Returns:
        uint8 array (T, crop, crop, 3).

    Raises:
        ClipError: where the clip cannot be read, with the reason.
    """
    return read_view(Clip(path, path, 0, kind), data)


def read_view(clip: Clip, data: DataConfig) -> np.ndarray:
    """The same of an annotated clip, which may be a part of its file."""
    frames = _read_sampled(clip, data, 1, None, None)
    with tf.device("CPU:0"):
        return center_view(frames, data.resize, data.crop).numpy()


class _Training:
    """Positions -> samples of training."""

    def __init__(self, clips, labels, data, seed, registry, stands_in, views, mix):
        self.clips, self.data, self.seed, self.registry = clips, data, seed, registry
        self.stands_in, self.views, self.mix = stands_in, views, mix
        self.may_mirror = [data.flip and may_flip(text) for text in labels]
        self.order = _Order(len(clips), seed)
        self.window = _compiled(lambda size, view_seed: training_window(size, view_seed, data), tf.int64)

    def load(self, position):
        position = int(position)
        view_seed = np.random.default_rng((self.seed, _VIEW, position)).integers(2**31, size=2)
        # Several views show several parts.
        part = _Part((lambda size: self.window(size, view_seed)) if self.views == 1 else None)
        for clip in self._candidates(position):
            frames = _frames_or_none(clip, self.data, self.registry, 1, (self.seed, _SEGMENTS, position), part)
            if frames is not None:
                break
        flip = np.bool_(self.may_mirror[clip.label])
        return *_readable(frames, self.data.frames, part), np.int32(clip.label), view_seed, flip

    def _candidates(self, position):
        yield self.clips[self.order.clip(position)]
        generator = np.random.default_rng((self.seed, _STAND_IN, position))
        while self.stands_in:
            self.registry.check()  # ends where no clip can be read
            yield self.clips[generator.integers(len(self.clips))]

    def sample(self, position):
        types = (tf.uint8, tf.bool, tf.int32, tf.int32, tf.int64, tf.bool)
        frames, is_readable, place, label, seed, flip = tf.numpy_function(calls.guard(self.load), [position], types)
        frames, seed = tf.ensure_shape(frames, [self.data.frames, None, None, 3]), tf.ensure_shape(seed, [2])
        place, flip = tf.ensure_shape(place, [6]), tf.ensure_shape(flip, [])
        if self.views == 1:
            shown = _shown(frames, place, lambda size: training_window(size, seed, self.data))
            view = finish_view(shown, seed, self.data, flip)
        else:
            seeds = [seed, *(fold(seed, _SECOND + number) for number in range(self.views - 1))]
            view = tf.stack([training_view(frames, each, self.data, flip) for each in seeds])
        values = {"frames": view, "label": tf.ensure_shape(label, []), "position": position}
        if self.mix is not None:
            values |= mix_draw(fold(seed, _MIX), self.mix, self.data.crop)
        return tf.ensure_shape(is_readable, []), values


class _Testing:
    """Indices of clips -> samples of testing."""

    def __init__(self, clips, data, registry, protocol, keeps_rows):
        self.clips, self.data, self.registry, self.protocol = clips, data, registry, protocol
        self.keeps_rows = keeps_rows
        self.window = _compiled(lambda size: center_window(size, data.resize, data.crop))

    def load(self, index):
        frames, label, protocol = None, 0, self.protocol
        part = _Part(self.window if protocol.crops == 1 else None)
        if index < len(self.clips):  # not a row that fills up the last batch
            clip = self.clips[int(index)]
            entropy = (protocol.seed, _TEST, int(index)) if protocol.random else None
            frames = _frames_or_none(clip, self.data, self.registry, protocol.clips, entropy, part)
            label = clip.label if frames is not None else 0
        return *_readable(frames, self.data.frames * protocol.clips, part), np.int32(label)

    def sample(self, index):
        types, crop = (tf.uint8, tf.bool, tf.int32, tf.int32), self.data.crop
        frames, is_readable, place, label = tf.numpy_function(calls.guard(self.load), [index], types)
        count, is_readable = self.data.frames * self.protocol.clips, tf.ensure_shape(is_readable, [])
        frames, place = tf.ensure_shape(frames, [count, None, None, 3]), tf.ensure_shape(place, [6])
        if self.protocol.crops == 1:
            shown = _shown(frames, place, lambda size: center_window(size, self.data.resize, crop))
            views = fit(shown, crop)[None]
        else:
            views = crop_views(frames, self.data.resize, crop, self.protocol.crops)
        views = tf.reshape(views, [self.protocol.crops, self.protocol.clips, self.data.frames, crop, crop, 3])
        views = tf.reshape(tf.transpose(views, [1, 0, 2, 3, 4, 5]), [-1, *views.shape[2:]])  # (V, T, crop, crop, 3)
        return tf.logical_or(is_readable, self.keeps_rows), {
            "frames": views if self.protocol.views > 1 else views[0],
            "label": tf.ensure_shape(label, []),
            "index": tf.where(is_readable, index, -1),
            "weight": tf.cast(is_readable, tf.float32),
        }


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
    options.threading.private_threadpool_size = data.workers
    # As many clips are under way: sharing out the work on one of them as well only costs time.
    options.threading.max_intra_op_parallelism = 1
    # More calls than workers: samples come out in order, and no worker shall wait for another one's slow clip.
    samples = positions.map(sample, num_parallel_calls=2 * data.workers, deterministic=True)
    readable = samples.filter(lambda is_readable, _: is_readable).map(lambda _, values: values)
    return readable.with_options(options)


def _read_sampled(clip, data, clips, entropy, window):
    """The frames of some clips of a video, one clip after the other; each frame is decoded once."""
    places = None

    def choose(n):
        nonlocal places
        # A generator for each choice: the decoder may ask again with another number of frames.
        generator = None if entropy is None else np.random.default_rng(entropy)
        indices = clip_indices(n, data.frames, data.sampling, clips, generator)
        wanted, places = np.unique(indices.reshape(-1), return_inverse=True)
        return wanted

    frames = decode.read_clip(clip, choose, window)
    is_in_order = np.array_equal(places, np.arange(len(frames)))
    return frames if is_in_order else frames[places]


def _frames_or_none(clip, data, registry, clips, entropy, window):
    if clip.place in registry:
        return None
    try:
        return _read_sampled(clip, data, clips, entropy, window)
    except ClipError as error:
        registry.record(clip.place, str(error))
    return None


def _readable(frames, count, part):
    """(frames, whether there are any, place): the smallest stand-in where there are none.

    ``place`` is height and width of the whole frames, and the window that they are cut to already, zeros for none.
    """
    if frames is None:
        return np.zeros((count, 1, 1, 3), np.uint8), np.bool_(False), np.array([1, 1, 0, 0, 0, 0], np.int32)
    return frames, np.bool_(True), np.array([*part.size, *(part.box or (0, 0, 0, 0))], np.int32)


class _Part:
    """Has only that part of large frames decoded that a view shows, and notes which.

    For small frames it takes longer to find the part than to decode the rest.

    Args:
        window: function of (height, width) that gives the window, or None: the whole frame is wanted.
    """

    def __init__(self, window):
        self.window, self.size, self.box = window, None, None

    def __call__(self, height, width):
        is_small = height * width < _LARGE
        self.size = height, width
        self.box = None if is_small or self.window is None else self.window(self.size)
        return self.box


def _shown(frames, place, window):
    """The window's part of the frames, which may be cut to it already (see :func:`_readable`).

    One that was cut is not sought again: two graphs may round the same window differently, by a pixel.
    """
    return tf.cond(place[4] > 0, lambda: frames, lambda: cut(frames, window(place[:2])))


def _compiled(window, *seed_types):
    """A function of a frame's size (and a seed) as one that Python calls: it gives four whole numbers."""
    signature = [tf.TensorSpec([2], tf.int32), *(tf.TensorSpec([2], each) for each in seed_types)]
    function = tf.function(window, input_signature=signature).get_concrete_function()

    def call(size, *seeds):
        with tf.device("CPU:0"):
            size, *seeds = (tf.constant(each, spec.dtype) for each, spec in zip((size, *seeds), signature, strict=True))
            return tuple(function(size, *seeds).numpy().tolist())

    return call


def _mixed(batch, classes, rows):
    """The rows wanted of the batch, mixed with their partners in it."""
    batch = dict(batch)
    targets = tf.one_hot(batch["label"], classes)
    share, box = batch.pop("share"), batch.pop("box")
    batch["frames"], batch["target"] = mix_pairs(batch["frames"], targets, share, box)
    return {name: values[rows] for name, values in batch.items()}


def _filled(batch, rows):
    missing = rows - tf.shape(batch["index"])[0]
    return {
        name: tf.ensure_shape(_fill(values, missing, -1 if name == "index" else 0), [rows, *values.shape[1:]])
        for name, values in batch.items()
    }


def _fill(values, missing, with_value):
    paddings = [[0, missing]] + [[0, 0]] * (values.shape.rank - 1)
    return tf.pad(values, paddings, constant_values=tf.cast(with_value, values.dtype))
