"""Packs a data set into shards: TFRecord files of JPEG frames, or of video files, as they are or encoded anew.

Each shard is written under another name first and gets its own when it is whole; its JSON file comes last. So a run
that was killed leaves whole shards and rubbish: the next one keeps the former and clears away the latter. What is in a
shard depends on the data set and the settings alone, not on the number of workers.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_stss.data.annotations import Clip, DataError, DataSet, storage
from keras_stss.data.annotations.packed import FORMS, MANIFEST, SPLITS, VERSION, digest
from keras_stss.data.decode import ClipError, read_clip
from keras_stss.data.frames import Cutter
from keras_stss.data.pictures import decode_picture, frame_names, picture_bytes, picture_size
from keras_stss.data.record_writer import RecordWriter, digest_file
from keras_stss.data.transcode import check_encoder, shrunk, transcoded

logger = logging.getLogger(__name__)

MAX_JPEG_BYTES = 2**30  # the frames of one clip, which are in memory together

_CLIPS_PER_SHARD = 1000
_BLOCK_BYTES = 2**20  # of a video: the unit of reading and of checksums
_SEED = 0  # fixed: which shard a clip is in must not change from run to run
_PARTIAL = ".partial"


def pack(
    data_set: DataSet,
    output: str,
    form: str = "jpeg",
    *,
    short_side: int | None = None,
    quality: int = 95,
    shards: int | None = None,
    workers: int = 1,
    source: str = "",
    advance=None,
) -> dict:
    """Packs the clips of a data set, or goes on where an earlier run stopped.

    A clip that cannot be read keeps its place in the lists and stays unreadable, so that a stream of the packed set
    shows the same clips at the same positions as one of the files.

    Args:
        data_set: what :func:`keras_stss.data.annotations.read_annotations` gave.
        output: the folder to write, on a disk.
        form: ``"video"``: the bytes of each video file, once for all clips that are parts of it; with ``short_side``,
            each clip encoded anew, every frame a key frame, which is decoded in less than half the time. ``"jpeg"``:
            every frame of each clip. JPEG and PNG files are taken as they are where ``short_side`` does not shrink
            them.
        short_side: larger frames are shrunk to this short side in pixels.
        quality: form jpeg: of frames that are encoded anew, from 1 to 100.
        shards: number of shards, at least one a split (default: one for every 1000 clips, and one for every worker).
        workers: shards written at the same time.
        source: where the data set came from, for the manifest.
        advance: function (clips done, clips in all), called after every clip.

    Returns:
        The manifest.

    Raises:
        DataError: where a setting is wrong, the folder holds shards that were packed otherwise, or another process
            packs into it.
        OSError: where it cannot be written.
    """
    settings = _checked(form, short_side, quality)
    _check_kinds(data_set, form)
    if storage.is_remote(output):
        raise DataError(f"shards are written to a disk; copy the folder afterwards. Received: {output}")
    if workers < 1 or (shards is not None and shards < 1):
        raise DataError(f"shards and workers must be at least 1. Received: shards={shards}, workers={workers}")
    os.makedirs(output, exist_ok=True)
    with _locked(output):
        jobs = _jobs(data_set, settings == {"form": "video"}, shards, workers)
        packer = _Packer(output, settings, data_set, jobs, advance)
        _check_folder(output, jobs)
        with ThreadPoolExecutor(workers) as pool, packer.stopping():
            shard_entries = list(pool.map(packer.pack_shard, jobs))
        manifest = {
            "version": VERSION,
            "form": form,
            "settings": settings,
            "source": source,
            "labels": data_set.labels,
            "clips": {split: len(getattr(data_set, split)) for split in SPLITS},
            "shards": [entry for entry, _ in shard_entries],
            "unreadable": {place: reason for _, problems in shard_entries for place, reason in problems.items()},
        }
        _write(os.path.join(output, MANIFEST), _json(manifest, indent=1))
    return manifest


@dataclass(frozen=True)
class _Job:
    """One shard: its name, and its clips in units that share a record."""

    name: str
    split: str
    units: list[list[tuple[int, Clip]]]


class _Packer:
    """Writes shards; each call of :meth:`pack_shard` may run in a thread of its own."""

    def __init__(self, output, settings, data_set, jobs, advance):
        self.output, self.settings, self.labels, self.advance = output, settings, data_set.labels, advance
        self.total = sum(len(unit) for job in jobs for unit in job.units)
        self.done, self.failure = 0, None
        self._lock, self._stop = threading.Lock(), threading.Event()

    @contextlib.contextmanager
    def stopping(self):
        """Where one shard fails, or the user interrupts, the others end at their next clip."""
        try:
            yield
        except BaseException as error:
            self._stop.set()
            raise (self.failure or error) from None

    def pack_shard(self, job):
        """(manifest's entry of the shard, {source: reason} of what cannot be read)."""
        mark = _fingerprint(job, self.settings, self.labels)
        path = os.path.join(self.output, job.name)
        index = _finished(path)
        if index is None:
            index = self._write_shard(job, path, mark)
        elif index["fingerprint"] != mark:
            raise DataError(
                f"{path}.json is of a shard that was packed otherwise (other clips, labels or settings): pack into "
                "another folder, or delete this one"
            )
        else:
            self._tell(sum(map(len, job.units)))
        with open(f"{path}.json", "rb") as file:
            sha256 = {**index["sha256"], ".json": digest(file.read())}
        entry = {"name": job.name, "split": job.split, "clips": len(index["clips"]), "records": index["records"]}
        problems = {
            clip["source"]: index["problems"][str(clip["record"])]
            for clip in index["clips"]
            if str(clip["record"]) in index["problems"]
        }
        return {**entry, "bytes": index["bytes"], "sha256": sha256}, problems

    def _write_shard(self, job, path, mark):
        clips, problems = [], {}
        partial = f"{path}.tfrecord{_PARTIAL}"
        try:
            with RecordWriter(partial) as writer:
                for unit in job.units:
                    if self._stop.is_set():
                        raise InterruptedError(4, "stopped", partial)
                    self._write_unit(writer, job.split, unit, clips, problems)
                    self._tell(len(unit))
            size = os.path.getsize(partial)
            sha256 = {".tfrecord": digest_file(partial), ".index": digest(table := writer.table())}
        except BaseException as error:
            with self._lock:
                self.failure = self.failure or error
            self._stop.set()
            with contextlib.suppress(OSError):
                os.remove(partial)
            raise
        index = {
            "version": VERSION,
            "fingerprint": mark,
            "records": writer.records - len(problems),
            "bytes": size,
            "sha256": sha256,
            "clips": clips,
            "problems": problems,
        }
        os.replace(partial, f"{path}.tfrecord")
        _write(f"{path}.index", table)
        # The JSON file says that the shard is whole, so it comes last.
        _write(f"{path}.json", _json(index))
        return index

    def _write_unit(self, writer, split, unit, clips, problems):
        readable = []
        for number, clip in unit:
            try:
                readable.append((number, clip, self._pieces(clip)))
            except ClipError as error:
                record = writer.skip()
                problems[str(record)] = str(error)
                clips.append(_entry(number, clip, record, self.settings))
                logger.warning("unreadable clip left out: %s: %s", clip.place, error)
        if not readable:
            return
        _, first, pieces = readable[0]
        features = {"id": first.id, "split": split, "label": first.label, "text": self.labels[first.label]}
        if self.settings == {"form": "video"} and _is_part(first):
            features = {"split": split}  # of a video that several clips may be parts of
        try:
            record = writer.write(features, "frames" if self.settings["form"] == "jpeg" else "video", pieces)
        except _SourceError as error:
            raise OSError(5, f"cannot be read any more: {error}", first.path) from None
        clips += [_entry(number, clip, record, self.settings) for number, clip, _ in readable]

    def _pieces(self, clip):
        """The clip's pieces, once it is sure that it can be read."""
        if "short_side" in self.settings and self.settings["form"] == "video":
            content = transcoded(clip, self.settings["short_side"])
            return [content[first : first + _BLOCK_BYTES] for first in range(0, len(content), _BLOCK_BYTES)]
        if self.settings["form"] == "video":
            read_clip(clip, lambda n: [0])
            return _blocks(clip.path)
        if clip.kind == "frames":
            return _folder_pieces(clip, self.settings)
        encoder = _Encoder(self.settings)
        order = read_clip(clip, np.arange, cutter=encoder)
        return [encoder.pictures[number] for number in order.reshape(-1)]

    def _tell(self, count):
        with self._lock:
            self.done += count
            if self.advance:
                self.advance(self.done, self.total)


class _SourceError(Exception):
    """A file that could be read a moment ago."""


class _Encoder(Cutter):
    """Takes the place of what cuts frames: encodes each as it is decoded, and gives its number in its place.

    Decoding may begin anew; the numbers that come back in the end are those that count.
    """

    def __init__(self, settings):
        super().__init__(None)
        self.settings, self.pictures, self._size_kept = settings, [], 0

    def cut(self, picture, count):
        self.box(*picture.shape[:2], 1)
        self.pictures.append(_encode(picture, self.settings))
        self._size_kept += len(self.pictures[-1])
        _check_total(self._size_kept)
        return np.array([len(self.pictures) - 1])


def _folder_pieces(clip, settings):
    folder, total, pieces = storage.absolute(clip.path), 0, []
    try:
        names = frame_names(folder)
    except FileNotFoundError:
        raise ClipError("no such folder") from None
    if clip.frames is not None:
        if clip.frames[0] >= len(names):
            raise ClipError(f"its part starts at frame {clip.frames[0]}; there are {len(names)}")
        names = names[slice(*clip.frames)]
    for name in names:
        content = picture_bytes(storage.join(folder, name))
        height, width = picture_size(content, name)
        if settings["short_side"] is not None and min(height, width) > settings["short_side"]:
            content = _encode(decode_picture(content, name, Cutter(None), 1), settings)
        pieces.append(content)
        total += len(content)
        _check_total(total)
    return pieces


def _check_total(size):
    if size > MAX_JPEG_BYTES:
        raise ClipError(f"its frames take more than {MAX_JPEG_BYTES / 2**30:.3g} GiB; give the part wanted")


def _encode(picture, settings):
    with tf.device("CPU:0"):
        picture = shrunk(picture, settings["short_side"])
        return tf.io.encode_jpeg(picture, format="rgb", quality=settings["quality"]).numpy()


def _blocks(path):
    try:
        with storage.opened(path) as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise _SourceError(error.strerror) from None


def _checked(form, short_side, quality):
    if form not in FORMS:
        raise DataError(f"form must be {' or '.join(FORMS)}. Received: form={form!r}")
    if (short_side is not None and short_side < 1) or not 1 <= quality <= 100:
        raise DataError(
            "short_side must be at least 1 and quality from 1 to 100. "
            f"Received: short_side={short_side}, quality={quality}"
        )
    if form == "video":
        if short_side is None:
            return {"form": form}
        check_encoder()
        return {"form": form, "short_side": short_side}
    return {"form": form, "short_side": short_side, "quality": quality}


def _check_kinds(data_set, form):
    kinds = {clip.kind for split in SPLITS for clip in getattr(data_set, split)}
    if kinds & set(FORMS.values()):
        raise DataError("the data set is packed already; pack its files again")
    if form == "video" and kinds != {"video"}:
        raise DataError("folders of frames are packed in form 'jpeg', not 'video'")


@contextlib.contextmanager
def _locked(folder):
    """Keeps others from packing into the folder; the lock ends with the process, however it ends."""
    with open(os.path.join(folder, ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"another process is packing into {folder}") from None
        yield


def _jobs(data_set, shares_files, shards, workers):
    """The shards in order. Clips are mixed, so that a reader of whole shards meets all labels in each."""
    clips = {split: list(enumerate(getattr(data_set, split))) for split in SPLITS}
    total, jobs = sum(map(len, clips.values())), []
    wanted = shards or max(-(-total // _CLIPS_PER_SHARD), workers)
    for split, numbered in clips.items():
        units = {}
        for number, clip in numbered:
            units.setdefault(clip.path if shares_files else number, []).append((number, clip))
        units = list(units.values())
        random.Random(_SEED).shuffle(units)
        count = min(max(round(wanted * len(numbered) / total), 1), len(units))
        jobs += [_Job(f"{split}-{shard:05d}-of-{count:05d}", split, units[shard::count]) for shard in range(count)]
    return jobs


def _check_folder(folder, jobs):
    """Clears away what a killed run left; refuses a folder with the shards of another packing."""
    ours = {job.name for job in jobs}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if suffix == _PARTIAL:
            os.remove(os.path.join(folder, name))
        elif suffix in (".tfrecord", ".json", ".index") and name != MANIFEST and stem not in ours:
            raise DataError(
                f"{os.path.join(folder, name)} is none of the shards wanted (another number of them, or another data "
                "set): pack into another folder, or delete this one"
            )


def _fingerprint(job, settings, labels):
    clips = [
        [number, clip.id, clip.path, clip.label, clip.kind, clip.group, clip.start, clip.end, clip.frames]
        for unit in job.units
        for number, clip in unit
    ]
    return hashlib.sha256(json.dumps([VERSION, settings, job.split, labels, clips]).encode()).hexdigest()


def _finished(path):
    """What the JSON file of a whole shard says; None where the shard has to be written."""
    try:
        with open(f"{path}.json", "rb") as file:
            index = json.loads(file.read())
        is_whole = os.path.getsize(f"{path}.tfrecord") == index["bytes"]
        with open(f"{path}.index", "rb") as file:
            is_whole &= digest(file.read()) == index["sha256"][".index"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return index if is_whole else None


def _is_part(clip):
    return (clip.start, clip.end, clip.frames) != (None, None, None)


def _entry(number, clip, record, settings):
    entry = {"number": number, "record": record, "id": clip.id, "label": clip.label, "source": clip.place}
    if clip.group is not None:
        entry["group"] = clip.group
    if settings == {"form": "video"}:
        entry["suffix"] = os.path.splitext(clip.path)[1]
        entry |= {name: value for name in ("start", "end", "frames") if (value := getattr(clip, name)) is not None}
    elif settings["form"] == "video":
        entry["suffix"] = ".mp4"
    return entry


def _json(value, indent=None):
    # Names on a disk may hold bytes that are no text; they come through as they came.
    return json.dumps(value, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _write(path, content):
    """Writes a whole file or none."""
    with open(path + _PARTIAL, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + _PARTIAL, path)
