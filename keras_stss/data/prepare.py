"""Checks a download: what is there, what is missing, unreadable or there twice, and how the clips are.

The packing of a data set into shards starts from the same list of clips: :func:`all_clips`.
"""

import contextlib
import hashlib
import logging
import random
import statistics
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from keras_stss.config import DataConfig
from keras_stss.data.annotations import groups, read_annotations, storage
from keras_stss.data.annotations.data_set import Clip
from keras_stss.data.decode import ClipError, read_clip
from keras_stss.data.pictures import FRAME_SUFFIXES
from keras_stss.data.video import describe

#: How far a clip is looked into: is it there; its header, packets and first frame; every frame.
DEPTHS = ("files", "packets", "frames")

_BLOCK = 512  # clips handed to the threads at a time, so that an interruption does not wait for all
_DIGESTED = 2**16  # bytes at either end of a file that are compared first
_AT_ONCE = 16  # frames decoded at a time where all are looked at
_STRIP = 6  # pictures of a sample clip
_LINE_INTERVAL = 10.0  # seconds between lines where the output is no terminal
_MISSING = ("no such file", "no such folder")


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """What was found of one clip; ``problem`` is None where it can be read."""

    clip: Clip
    split: str
    problem: str | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    seconds: float | None = None
    rate: float | None = None
    codec: str | None = None

    @property
    def is_missing(self) -> bool:
        return self.problem in _MISSING


def all_clips(data_set):
    """(split, clip) of every clip of a data set, in order."""
    return [("train", clip) for clip in data_set.train] + [("validation", clip) for clip in data_set.validation]


def check_data_set(data: DataConfig, depth="packets", workers=None, samples=12, advance=None):
    """Looks into every clip that the annotations name.

    Args:
        data: the config's data section; root, format, workers and max_unreadable are read.
        depth: ``"files"``, ``"packets"`` or ``"frames"``, see :data:`DEPTHS`.
        workers: clips looked into at the same time (default: ``data.workers``).
        samples: clips to take pictures of.
        advance: function (clips done, clips in all), called after every clip.

    Returns:
        (report, strips): a dictionary of what JSON can hold, and a list of (clip's place, label, JPEG pictures).

    Raises:
        DataError: where the annotations are not there or wrong.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth must be one of {', '.join(DEPTHS)}. Received: depth={depth!r}")
    with _Warnings() as warnings:
        data_set = read_annotations(_of_any_group(data))
    clips = all_clips(data_set)
    found = []
    with ThreadPoolExecutor(workers or data.workers) as pool:
        for first in range(0, len(clips), _BLOCK):
            for facts in pool.map(lambda pair: look_at(pair[1], pair[0], depth), clips[first : first + _BLOCK]):
                found.append(facts)
                if advance:
                    advance(len(found), len(clips))
    report = {
        "format": data.format,
        "root": storage.absolute(data.root),
        "depth": depth,
        "warnings": warnings.texts,
        **_counts(found),
        "duplicates": duplicates(found) if depth != "files" else None,
        "labels": _labels(found, data_set.labels),
        **_figures(found),
    }
    report["is_usable"] = all(share <= data.max_unreadable for share in report["unusable_share"].values())
    return report, _strips(found, data_set.labels, samples)


@contextlib.contextmanager
def progress(stream, what="looking at clips"):
    """Gives the ``advance`` of :func:`check_data_set`: a bar on a terminal, a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=stream)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, last = bar.add_task("", total=None), time.monotonic()

        def advance(done, total):
            nonlocal last
            bar.update(task, completed=done, total=total)
            if not console.is_terminal and time.monotonic() - last >= _LINE_INTERVAL:
                last = time.monotonic()
                print(f"{what}: {done} of {total}", file=stream, flush=True)

        yield advance


def look_at(clip, split="", depth="packets"):
    """The :class:`ClipFacts` of one clip."""
    try:
        if depth == "files":
            _check_exists(clip)
            return ClipFacts(clip, split)
        shape, count = [], []

        def window(height, width):
            shape[:] = height, width
            return 0, 0, height, width

        read_clip(clip, lambda n: count.append(n) or [0], window)
        if depth == "frames":
            _read_all(clip, count[-1])
        told = describe(clip.path) if clip.kind == "video" else {}
    except ClipError as error:
        return ClipFacts(clip, split, str(error))
    except OSError as error:
        return ClipFacts(clip, split, f"cannot be read: {error.strerror or error}")
    return ClipFacts(clip, split, None, count[-1], *shape, **_part(told, clip, count[-1]))


def duplicates(found):
    """Groups of places whose files have the same content, and of clips that are the same part of one file.

    Args:
        found: list of :class:`ClipFacts`.
    """
    splits, sizes = defaultdict(set), defaultdict(list)
    for facts in found:
        if facts.problem is None:
            splits[facts.clip.place].add(facts.split)
            sizes[facts.clip.path].append(facts)
    by_size = defaultdict(list)
    for path, same in sizes.items():
        by_size[same[0].clip.kind, _size(path)].append(path)
    groups = []
    for digest in (_ends, _content):
        candidates = by_size.values() if digest is _ends else groups
        alike = defaultdict(list)
        for number, paths in enumerate(candidates):
            for path in paths if len(paths) > 1 else ():
                alike[number, digest(path)].append(path)
        groups = [sorted(paths) for paths in alike.values() if len(paths) > 1]
    in_both = sorted(place for place, parts in splits.items() if len(parts) > 1)
    return {"same_content": groups, "in_both_lists": in_both}


class _Warnings(logging.Handler):
    """Keeps what the readers warn of while it is entered."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())

    def __enter__(self):
        logging.getLogger("keras_stss.data").addHandler(self)
        return self

    def __exit__(self, *_):
        logging.getLogger("keras_stss.data").removeHandler(self)


def _of_any_group(data):
    """With 'each' group held out in turn, any of them will do: all clips are in one of the two lists."""
    if data.holdout != "each":
        return data
    return data.model_copy(update={"holdout": groups(data)[0]})


def _check_exists(clip):
    if not storage.exists(clip.path):
        raise ClipError(_MISSING[clip.kind == "frames"])
    if clip.kind == "video" and storage.size(clip.path) == 0:
        raise ClipError("empty file (zero bytes)")


def _read_all(clip, count):
    """Decodes every frame, a few at a time in folders; of videos one pixel each is kept."""
    if clip.kind == "video":
        read_clip(clip, np.arange, lambda height, width: (0, 0, 1, 1))
        return
    for first in range(0, count, _AT_ONCE):
        read_clip(clip, lambda n, first=first: np.arange(first, max(min(first + _AT_ONCE, n), first + 1)))


def _part(told, clip, count):
    """What :func:`describe` told, for the part of the video that the clip is."""
    rate, seconds = told.get("rate"), told.get("seconds")
    if clip.start is not None or clip.end is not None:
        # An end may be annotated beyond that of the video.
        end = min((time for time in (clip.end, seconds) if time is not None), default=None)
        seconds = None if end is None else max(end - (clip.start or 0), 0.0)
    elif clip.frames is not None and rate:
        seconds = count / rate
    return {**told, "seconds": seconds} if told else {}


def _size(path):
    return len(_pictures(path)) if storage.is_folder(path) else storage.size(path)


def _ends(path):
    """Digest of the first and the last bytes of a file, or of the first and the last picture of a folder."""
    if storage.is_folder(path):
        pictures = _pictures(path)
        return [_ends(picture) for picture in (pictures[0], pictures[-1])].__repr__()
    with storage.opened(path) as file:
        start = file.read(_DIGESTED)
        file.seek(max(storage.size(path) - _DIGESTED, 0))
        return hashlib.blake2b(start + file.read(_DIGESTED)).hexdigest()


def _pictures(folder):
    names = [name for name in storage.names(folder) if name.lower().endswith(FRAME_SUFFIXES)]
    return [storage.join(folder, name) for name in sorted(names)]


def _content(path):
    digest = hashlib.blake2b()
    for part in _pictures(path) if storage.is_folder(path) else [path]:
        with storage.opened(part) as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _counts(found):
    splits = {split: [facts for facts in found if facts.split == split] for split in ("train", "validation")}
    missing = [facts.clip.place for facts in found if facts.is_missing]
    unreadable = {facts.clip.place: facts.problem for facts in found if facts.problem and not facts.is_missing}
    return {
        "clips": {split: len(facts) for split, facts in splits.items()},
        "missing": missing,
        "unreadable": unreadable,
        "unusable_share": {
            split: sum(one.problem is not None for one in facts) / len(facts) for split, facts in splits.items()
        },
        "fewer_frames_than_listed": [
            facts.clip.place
            for facts in found
            # Lists of videos often give an end that is one too far.
            if facts.frames and facts.clip.frames and facts.clip.kind == "frames"
            if facts.frames < facts.clip.frames[1] - facts.clip.frames[0]
        ],
    }


def _labels(found, labels):
    counts = Counter((facts.clip.label, facts.split) for facts in found)
    readable = Counter(facts.clip.label for facts in found if facts.problem is None)
    return [
        {
            "label": text,
            "train": counts[number, "train"],
            "validation": counts[number, "validation"],
            "readable": readable[number],
        }
        for number, text in enumerate(labels)
    ]


def _figures(found):
    readable = [facts for facts in found if facts.problem is None and facts.frames]
    return {
        "frames": _summary([facts.frames for facts in readable]),
        "seconds": _summary([facts.seconds for facts in readable if facts.seconds]),
        "sizes": _most_common(f"{facts.width}x{facts.height}" for facts in readable),
        "rates": _most_common(f"{facts.rate:.4g}" for facts in readable if facts.rate),
        "codecs": _most_common(facts.codec for facts in readable if facts.codec),
    }


def _summary(values):
    if not values:
        return None
    # Twenty bars from the shortest to the longest.
    heights, edges = np.histogram(values, bins=20)
    return {
        "least": min(values),
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "most": max(values),
        "total": sum(values),
        "histogram": {"edges": [float(edge) for edge in edges], "counts": heights.tolist()},
    }


def _most_common(texts):
    counts = Counter(texts)
    shown = dict(counts.most_common(20))
    rest = sum(counts.values()) - sum(shown.values())
    return {**shown, **({"other": rest} if rest else {})}


def _strips(found, labels, samples):
    """Pictures of readable clips of as many labels as possible; the same ones every time."""
    readable = [facts.clip for facts in found if facts.problem is None]
    random.Random(0).shuffle(readable)
    turn = Counter()
    order = []
    for number, clip in enumerate(readable):
        order.append((turn[clip.label], number))
        turn[clip.label] += 1
    strips = []
    for _, number in sorted(order)[: 3 * samples]:
        clip = readable[number]
        # One whose later frames are damaged may be among them.
        with contextlib.suppress(ClipError):
            if len(strips) < samples:
                frames = read_clip(clip, lambda n: (2 * np.arange(_STRIP) + 1) * n // (2 * _STRIP))
                strips.append((clip.label, clip.place, _jpegs(frames)))
    return [(place, labels[label], pictures) for label, place, pictures in sorted(strips)]


def _jpegs(frames, height=108):
    import tensorflow as tf

    with tf.device("CPU:0"):
        width = max(round(height * frames.shape[2] / frames.shape[1]), 1)
        small = tf.saturate_cast(tf.round(tf.image.resize(frames, [height, width], antialias=True)), tf.uint8)
        return [tf.io.encode_jpeg(picture, quality=80).numpy() for picture in small]
