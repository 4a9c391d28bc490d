"""Frames of a folder of JPEG or PNG files, by TensorFlow's decoders."""

import os
import stat
import struct

import numpy as np
import tensorflow as tf

from keras_stss.data.annotations import natural_key
from keras_stss.data.frames import ClipError, check_size, chosen

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_PICTURE_BYTES = 2**28  # a picture file

_MARGIN = 2  # pixels
# Optical flow that the TSN tools write beside the frames.
_FLOW_PREFIXES = ("flow_x_", "flow_y_")


def read_folder(path, choose, cutter):
    if not os.path.isdir(path):
        raise ClipError("a file, not a folder of frames")
    # Names that start with a dot are leftovers of other systems, not pictures.
    names = [name for name in os.listdir(path) if name.lower().endswith(FRAME_SUFFIXES) and not name.startswith(".")]
    names = [name for name in names if not name.startswith(_FLOW_PREFIXES)]
    if not names:
        raise ClipError("a folder without frames (*.jpg, *.jpeg, *.png)")
    names.sort(key=natural_key)
    indices = chosen(choose, len(names))
    wanted = sorted(set(indices))
    frames = {index: _read_picture(os.path.join(path, names[index]), cutter, len(wanted)) for index in wanted}
    return np.stack([frames[index] for index in indices])


def _read_picture(path, cutter, times):
    name = os.path.basename(path)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_PICTURE_BYTES:
            raise ClipError(f"frame {name} is no file, or larger than {MAX_PICTURE_BYTES // 2**20} MiB")
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ClipError(f"frame {name} cannot be read: {error.strerror}") from None
    try:
        with tf.device("CPU:0"):
            if content.startswith(b"\xff\xd8"):
                height, width, _ = tf.io.extract_jpeg_shape(content).numpy().tolist()
                check_size(width, height)
                box = cutter.box(height, width, times)
                if box is None:
                    return tf.io.decode_jpeg(content, channels=3).numpy()
                return _decode_box(content, box, height, width)
            if content.startswith(b"\x89PNG") and len(content) > 24:
                check_size(*struct.unpack(">II", content[16:24]))
                return cutter.cut(tf.io.decode_png(content, channels=3).numpy(), times)
    except tf.errors.OpError:
        raise ClipError(f"frame {name} is damaged or cut short") from None
    raise ClipError(f"frame {name} is neither JPEG nor PNG")


def _decode_box(content, box, height, width):
    """The box of a JPEG picture, without decoding the rest of it; the same bytes as cut from the whole."""
    top, left, box_height, box_width = box
    # Colours, stored at half the size, are interpolated from their neighbours.
    above, before = max(top - _MARGIN, 0), max(left - _MARGIN, 0)
    below, behind = min(top + box_height + _MARGIN, height), min(left + box_width + _MARGIN, width)
    larger = tf.io.decode_and_crop_jpeg(content, [above, before, below - above, behind - before], channels=3).numpy()
    return larger[top - above : top - above + box_height, left - before : left - before + box_width]
