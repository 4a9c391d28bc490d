"""Writes one shard: a TFRecord file of ``tf.train.Example`` messages, and the table of where every piece lies."""

import hashlib
import os
import zlib

import numpy as np
import tensorflow as tf

from keras_stss.data.annotations.packed import PIECE

#: A record is written as one message up to this size, and as several beyond it, so that memory stays bounded.
PART_BYTES = 64 * 2**20

_HEADER, _FOOTER = 12, 4  # bytes that TFRecord puts round a message: its length and checksums
_BLOCK = 2**24


class RecordWriter:
    """A shard under way, to be used with ``with``; TFRecord's own checksums (CRC-32C) come from TensorFlow.

    Args:
        path: the file to write.
    """

    def __init__(self, path):
        self.path = path
        self._rows, self._offset, self.records = [], 0, 0
        try:
            self._writer = tf.io.TFRecordWriter(path)
        except tf.errors.OpError as error:
            raise _disk_error(path, error) from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self._writer.close()
        except tf.errors.OpError as error:
            raise _disk_error(self.path, error) from None

    def skip(self):
        """Leaves a number out, for a clip that cannot be read. Returns it."""
        self.records += 1
        return self.records - 1

    def write(self, features, name, pieces):
        """Writes a record. Returns its number.

        Args:
            features: dictionary of the message's other features, text or whole numbers.
            name: the feature of the pieces.
            pieces: iterable of byte strings.
        """
        part, size, parts = [], 0, 0
        for piece in pieces:
            if part and size + len(piece) > PART_BYTES:
                self._write_part({**features, "part": parts}, name, part)
                part, size, parts = [], 0, parts + 1
            part.append(piece)
            size += len(piece)
        self._write_part({**features, "part": parts}, name, part)
        self.records += 1
        return self.records - 1

    def _write_part(self, features, name, pieces):
        message, offsets = example(features, name, pieces)
        for offset, piece in zip(offsets, pieces, strict=True):
            self._rows.append((self._offset + _HEADER + offset, len(piece), zlib.crc32(piece), self.records))
        try:
            self._writer.write(message)
        except tf.errors.OpError as error:
            raise _disk_error(self.path, error) from None
        self._offset += _HEADER + len(message) + _FOOTER

    def table(self):
        """The table of pieces as the content of a file, its CRC-32 behind."""
        table = np.array(self._rows, PIECE).tobytes()
        return table + zlib.crc32(table).to_bytes(4, "little")


def example(features, name, pieces):
    """A ``tf.train.Example``, and where in it the pieces begin (which TensorFlow's own serialisation does not tell).

    Args:
        features: {name: text or whole number}.
        name: the feature that holds the pieces as a list of bytes.
        pieces: list of byte strings.

    Returns:
        (message, list of offsets).
    """
    head = b"".join(_entry(key.encode(), _feature(value)) for key, value in sorted(features.items()))
    starts = [_tag(1, len(piece)) for piece in pieces]
    size = sum(map(len, starts)) + sum(map(len, pieces))
    # The last entry of the map, opened: its key, then Feature > BytesList, then the pieces.
    feature = _tag(1, size)
    entry = _field(1, name.encode()) + _tag(2, len(feature) + size) + feature
    head += _tag(1, len(entry) + size) + entry
    chunks = [_tag(1, len(head) + size) + head]
    offsets, position = [], len(chunks[0])
    for start, piece in zip(starts, pieces, strict=True):
        offsets.append(position + len(start))
        position += len(start) + len(piece)
        chunks += (start, piece)
    return b"".join(chunks), offsets


def digest_file(path):
    """SHA-256 of a file, which is flushed to the disk."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()


def _entry(key, feature):
    return _field(1, _field(1, key) + _field(2, feature))


def _feature(value):
    if isinstance(value, str):
        return _field(1, _field(1, value.encode()))
    return _field(3, _field(1, _varint(value)))  # Int64List, packed


def _field(number, content):
    return _tag(number, len(content)) + content


def _tag(number, size):
    return bytes([number << 3 | 2]) + _varint(size)


def _varint(value):
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes(encoded) + bytes([value])


def _disk_error(path, error):
    return OSError(5, (error.message or type(error).__name__).splitlines()[0], path)
