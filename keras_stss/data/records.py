"""Frames of clips that are packed into shards, read at random: no shard is gone through from its start.

Of a clip of JPEG frames only the frames wanted are read; of a video, the blocks that its decoder asks for. Every piece
is checked against its CRC-32.
"""

import functools
import hashlib
import io
import os
import re
import zlib

import numpy as np

from keras_stss.data.annotations import storage
from keras_stss.data.annotations.packed import FORMS, PIECE, digest, read_manifest, read_shard
from keras_stss.data.frames import ClipError, Kept, chosen
from keras_stss.data.pictures import decode_picture
from keras_stss.data.video import read_video

KINDS = tuple(FORMS.values())

_MAX_PIECE = 2**28  # bytes; what a damaged table promises must not fill the memory
_KEPT_BLOCKS = 64  # of a video under way, at most 1 MiB each
_PATH = re.compile(r"(.*)\.tfrecord#(\d+)(\.[^./]*)?", re.DOTALL)


def read_record(path, kind, choose, start, end, cutter):
    """As :func:`keras_stss.data.decode.read_frames`, with a :class:`~keras_stss.data.frames.Cutter`.

    Args:
        path: shard and number of the record, as in the ``path`` of its clip.
        kind: ``"packed_frames"`` or ``"packed_video"``.
    """
    record = Record(path)
    if kind == "packed_frames":
        indices = chosen(choose, len(record.pieces))
        wanted = sorted(set(indices))
        pictures = zip(wanted, record.read(wanted), strict=True)
        kept = Kept(indices)
        try:
            for index, content in pictures:
                kept[index] = decode_picture(content, index, cutter, len(kept))
        except ClipError as error:
            raise ClipError(f"{record.name}: {error}") from None
        return kept.frames
    source = VideoSource(record)
    try:
        frames = read_video(source, choose, start, end, cutter)
    except ClipError:
        if source.problem is None:
            raise
    # FFmpeg may have taken a damaged block for the end of the file.
    if source.problem is not None:
        raise source.problem
    return frames


class Record:
    """The pieces of one record of a shard.

    Args:
        path: as in the ``path`` of a clip: ``folder/train-00000-of-00016.tfrecord#12.mp4``.

    Raises:
        ClipError: where it was unreadable when it was packed, or cannot be found now.
    """

    def __init__(self, path):
        match = _PATH.fullmatch(path)
        if match is None:
            raise ClipError("its path names no record of a shard")
        stem, self.number, suffix = match[1], int(match[2]), match[3] or ""
        self.shard = f"{stem}.tfrecord"
        self.name = f"record {self.number} of {self.shard.rpartition('/')[2]}"
        self.file_name = f"{self.number}{suffix}"
        self.pieces = _pieces_of(stem, self.number)
        if not len(self.pieces):
            raise ClipError(f"unreadable when it was packed: {_reason(stem, self.number)}")

    def read(self, indices):
        """The bytes of some pieces, checked."""
        rows = [self.pieces[index] for index in indices]
        if any(row["size"] > _MAX_PIECE for row in rows):
            raise ClipError(f"{self.name}: damaged, the index of its shard gives pieces of more than 256 MiB")
        try:
            contents = storage.read_ranges(self.shard, [(int(row["offset"]), int(row["size"])) for row in rows])
        except FileNotFoundError:
            raise ClipError(f"{self.name}: the shard is missing") from None
        for index, row, content in zip(indices, rows, contents, strict=True):
            if len(content) < row["size"]:
                raise ClipError(f"{self.name}: the shard is cut short, piece {index} of the record is beyond its end")
            if zlib.crc32(content) != row["crc"]:
                raise ClipError(f"{self.name}: damaged, piece {index} of the record has a wrong checksum")
        return contents


class VideoSource:
    """A packed video file, for PyAV; it may be opened more than once, and keeps the blocks read last."""

    def __init__(self, record):
        self.record, self.problem = record, None
        self.ends = np.cumsum(record.pieces["size"], dtype=np.int64)
        self._blocks = {}

    def open(self):
        """The file from its start."""
        return _VideoFile(self)

    def block(self, number):
        if number not in self._blocks:
            if len(self._blocks) >= _KEPT_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            try:
                self._blocks[number] = self.record.read([number])[0]
            except ClipError as error:
                self.problem = error
                raise
            except OSError as error:
                self.problem = ClipError(f"{self.record.name} cannot be read: {error.strerror or error}")
                raise self.problem from None
        return self._blocks[number]


class _VideoFile:
    """What PyAV wants of a file: read, seek, tell, and a name by which FFmpeg may guess the format."""

    def __init__(self, source):
        self._source, self._position = source, 0
        self.name = source.record.file_name

    def read(self, size=-1):
        ends, start = self._source.ends, self._position
        if start >= ends[-1] or size == 0:
            return b""
        # No more than to the end of a block: the caller asks again.
        number = int(np.searchsorted(ends, start, side="right"))
        block = self._source.block(number)
        first = start - int(ends[number]) + len(block)
        part = block[first:] if size < 0 else block[first : first + size]
        self._position += len(part)
        return part

    def seek(self, offset, whence=io.SEEK_SET):
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: int(self._source.ends[-1])}[whence]
        self._position = max(origin + offset, 0)
        return self._position

    def tell(self):
        return self._position


def check_packed(root, advance=None):
    """Reads every file of a packed folder and compares its checksum with the manifest's.

    Args:
        root: the packed folder.
        advance: function (shards done, shards in all).

    Returns:
        A dictionary of what JSON can hold: ``shards``, ``clips`` (by split), ``unreadable`` (number of clips that were
        so when they were packed), ``damaged`` (file or record -> reason).
    """
    manifest = read_manifest(root)
    damaged = {}
    for done, shard in enumerate(manifest["shards"], 1):
        damaged |= _check_shard(root, shard)
        if advance:
            advance(done, len(manifest["shards"]))
    return {
        "shards": len(manifest["shards"]),
        "clips": manifest["clips"],
        "unreadable": len(manifest["unreadable"]),
        "damaged": damaged,
    }


def _check_shard(root, shard):
    damaged = {}
    for suffix, wanted in shard["sha256"].items():
        path = storage.join(root, shard["name"] + suffix)
        try:
            if _digest_of(path) == wanted:
                continue
        except OSError as error:
            damaged[path] = f"cannot be read: {error.strerror or error}"
            continue
        damaged[path] = "its checksum is not the manifest's"
        if suffix == ".tfrecord":
            damaged |= _damaged_records(path)
    return damaged


def _digest_of(path):
    """In parts, as a shard may be larger than memory; remote ones are taken as they come."""
    sha, offset, size = hashlib.sha256(), 0, 2**24
    if storage.is_remote(path):
        return digest(storage.read_bytes(path))
    while part := storage.read_ranges(path, [(offset, size)])[0]:
        sha.update(part)
        offset += len(part)
    return sha.hexdigest()


def _damaged_records(path):
    found = {}
    try:
        numbers = np.unique(_table(path.removesuffix(".tfrecord"))["record"])
    except ClipError:
        return found  # the index is told of by itself
    for number in numbers:
        try:
            record = Record(f"{path}#{number}")
            for index in range(len(record.pieces)):
                record.read([index])
        except ClipError as error:
            found[f"{path}#{number}"] = str(error)
    return found


def _table(stem):
    """The pieces of a shard, in order of their records."""
    path = f"{stem}.index"
    name = f"{path.rpartition('/')[2]}, the index of its shard,"
    try:
        # On a disk, a shard may be packed anew while this process lives; of remote ones, asking costs a request a clip.
        status = None if storage.is_remote(path) else os.stat(path)
        pieces = _pieces(path, status and (status.st_ino, status.st_mtime_ns, status.st_size))
    except FileNotFoundError:
        raise ClipError(f"{name} is missing") from None
    except ValueError:
        raise ClipError(f"{name} is damaged") from None
    return pieces


@functools.cache
def _pieces(path, _state):
    """What an index holds, in this state of the file; ValueError where it is damaged."""
    # Of a file on disk, pages come into memory as they are needed.
    content = storage.read_bytes(path) if storage.is_remote(path) else np.memmap(path, np.uint8, "r")
    table, checksum = content[:-4], bytes(content[-4:])
    if zlib.crc32(table).to_bytes(4, "little") != checksum:
        raise ValueError("its checksum is wrong")
    return np.frombuffer(table, PIECE)


def _pieces_of(stem, number):
    pieces = _table(stem)
    first, after = np.searchsorted(pieces["record"], [number, number + 1])
    return pieces[first:after]


def _reason(stem, number):
    root, _, name = stem.rpartition("/")
    shard = next(shard for shard in read_manifest(root)["shards"] if shard["name"] == name)
    problems = read_shard(root, shard)["problems"]
    return problems.get(str(number), "no reason was kept")
