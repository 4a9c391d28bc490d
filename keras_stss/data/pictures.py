"""Frames of a folder of JPEG or PNG files, by TensorFlow's decoders."""

import os
import stat
import struct

import numpy as np
import tensorflow as tf

from keras_stss.data.annotations import natural_key, storage
from keras_stss.data.frames import ClipError, Kept, check_size, chosen

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_PICTURE_BYTES = 2**28  # a picture file
# Progressive JPEG files go over the picture once a scan: ten times, as they are written, but a few bytes make one more.
MAX_SCANS, MAX_SCANNED = 1000, 2_000_000_000  # scans; pixels of all scans together, seconds of work

_JPEG, _PNG, _SCAN = b"\xff\xd8", b"\x89PNG", b"\xff\xda"

# Of JPEG files: the markers whose segment holds the size, and those before it whose segment is passed over.
_SIZE_MARKERS = (0xC0, 0xC1, 0xC2)
_SKIPPED_MARKERS = (0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0))

_MARGIN = 2  # pixels
# Optical flow that the TSN tools write beside the frames.
_FLOW_PREFIXES = ("flow_x_", "flow_y_")


def read_folder(path, choose, cutter):
    names = frame_names(path)
    indices = chosen(choose, len(names))
    kept = Kept(indices)
    for index in sorted(set(indices)):
        kept[index] = decode_picture(picture_bytes(storage.join(path, names[index])), names[index], cutter, len(kept))
    return kept.frames


def frame_names(path):
    """The names of the frames of a folder, in order."""
    try:
        names = storage.names(path)
    except NotADirectoryError:
        raise ClipError("a file, not a folder of frames") from None
    # Names that start with a dot are leftovers of other systems, not pictures.
    names = [name for name in names if name.lower().endswith(FRAME_SUFFIXES) and not name.startswith(".")]
    names = [name for name in names if not name.startswith(_FLOW_PREFIXES)]
    if not names:
        raise ClipError("a folder without frames (*.jpg, *.jpeg, *.png)")
    return _in_order(names)


def _in_order(names):
    names.sort()
    # Numbers of one length, as nearly all folders have them, are in order now.
    length, end = len(names[0]), names[0].rindex(".")
    start = next((place for place, (a, b) in enumerate(zip(names[0], names[-1], strict=False)) if a != b), end)
    if all(len(name) == length and name[start:end].isdecimal() and name[end] == "." for name in names[1:]):
        return names
    return sorted(names, key=natural_key)


def picture_bytes(path):
    """The content of a picture file, which must not be too large."""
    name = os.path.basename(path)
    try:
        if storage.is_remote(path):
            content = storage.read_bytes(path, MAX_PICTURE_BYTES)
            if content is None:
                raise ClipError(_too_large(name))
            return content
        # No waiting for what a pipe may give.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_PICTURE_BYTES:
                raise ClipError(_too_large(name))
            return os.read(file, status.st_size)
        finally:
            os.close(file)
    except OSError as error:
        raise ClipError(f"frame {name} cannot be read: {error.strerror}") from None


def _too_large(name):
    return f"frame {name} is no file, or larger than {MAX_PICTURE_BYTES // 2**20} MiB"


def decode_picture(content, name, cutter, times):
    """The cutter's part of a JPEG or PNG picture, one of ``times`` that are kept; ``name`` is for messages."""
    size = picture_size(content, name)
    try:
        with tf.device("CPU:0"):
            if content.startswith(_PNG):
                return cutter.cut(_array(tf.io.decode_png(content, channels=3)), times)
            box = cutter.box(*size, times)
            if box is None:
                return _array(tf.io.decode_jpeg(content, channels=3))
            return _decode_box(content, box, *size)
    except tf.errors.OpError:
        raise ClipError(f"frame {name} is damaged or cut short") from None


def picture_size(content, name):
    """(height, width) of a JPEG or PNG picture, from its header."""
    if content.startswith(_JPEG):
        try:
            with tf.device("CPU:0"):
                height, width = _jpeg_size(content) or tf.io.extract_jpeg_shape(content).numpy().tolist()[:2]
        except tf.errors.OpError:
            raise ClipError(f"frame {name} is damaged or cut short") from None
    elif content.startswith(_PNG) and len(content) > 24:
        width, height = struct.unpack(">II", content[16:24])
    else:
        raise ClipError(f"frame {name} is neither JPEG nor PNG")
    check_size(width, height)
    # The marker of a scan stands nowhere in coded pixels; in other data it may, a few times.
    if content.startswith(_JPEG) and (scans := content.count(_SCAN)) > min(MAX_SCANS, MAX_SCANNED // (height * width)):
        raise ClipError(f"frame {name} is stored in {scans} scans of {width}x{height} pixels: too many to decode")
    return height, width


def _decode_box(content, box, height, width):
    """The box of a JPEG picture, without decoding the rest of it; the same bytes as cut from the whole."""
    top, left, box_height, box_width = box
    # Colours, stored at half the size, are interpolated from their neighbours.
    above, before = max(top - _MARGIN, 0), max(left - _MARGIN, 0)
    below, behind = min(top + box_height + _MARGIN, height), min(left + box_width + _MARGIN, width)
    larger = tf.io.decode_and_crop_jpeg(content, [above, before, below - above, behind - before], channels=3)
    return _array(larger)[top - above : top - above + box_height, left - before : left - before + box_width]


def _array(tensor):
    """The tensor's own memory, to read: ``numpy()`` copies it."""
    return np.asarray(memoryview(tensor))


def _jpeg_size(content):
    """(height, width) of a JPEG picture from its header; None where that is unusual. Far faster than an operation."""
    place = 2
    while content[place : place + 1] == b"\xff" and place + 9 <= len(content):
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if marker in _SIZE_MARKERS:
            height, width = struct.unpack(">HH", content[place + 5 : place + 9])
            return (height, width) if height and width else None
        if marker not in _SKIPPED_MARKERS or length < 2:
            return None
        place += 2 + length
    return None
