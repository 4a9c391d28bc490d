"""A clip as a video file whose frames can all be decoded alone: between a folder of JPEG frames and the file it was."""

import io

import av
import numpy as np
import tensorflow as tf

from keras_stss.data.annotations import DataError
from keras_stss.data.decode import read_clip
from keras_stss.data.frames import ClipError, Cutter

MAX_BYTES = 2**30  # of one clip, which is in memory as a whole

_RATE = 25  # frames a second: what the file says; frames are counted
# Every frame is a key frame, and without the filter and the coding of bits that take the longest to undo.
_OPTIONS = {"crf": "18", "g": "1", "preset": "medium", "tune": "fastdecode"}


def check_encoder():
    """Raises :class:`DataError` where PyAV comes without the encoder."""
    if "libx264" not in av.codecs_available:
        raise DataError("this PyAV has no H.264 encoder (libx264; its wheels have it): pack in form 'jpeg'")


def transcoded(clip, short_side):
    """The clip's frames as an MP4 file of H.264 key frames.

    Args:
        clip: a clip of a video.
        short_side: larger frames are shrunk to this short side in pixels.
    """
    encoder = _Encoder(short_side, 0)
    order = read_clip(clip, np.arange, cutter=encoder).reshape(-1)
    if order[0]:
        # Decoding began anew on the way, as it will again; what came before does not count.
        encoder = _Encoder(short_side, order[0])
        order = read_clip(clip, np.arange, cutter=encoder).reshape(-1)
    content = encoder.finished()
    if not np.array_equal(order, np.arange(encoder.skipped, encoder.seen)):
        raise ClipError("damaged: gives another number of frames each time it is read")
    return content


def shrunk(picture, short_side, even=False):
    """The picture, shrunk to a short side in pixels where it is larger; ``even`` rounds its sides to even numbers."""
    least = min(picture.shape[:2])
    if short_side is None or least <= short_side:
        return picture
    unit = 2 if even else 1
    size = [max(round(side * short_side / least / unit) * unit, unit) for side in picture.shape[:2]]
    with tf.device("CPU:0"):
        return tf.saturate_cast(tf.round(tf.image.resize(picture, size, antialias=True)), tf.uint8).numpy()


class _Encoder(Cutter):
    """Takes the place of what cuts frames: encodes each as it is decoded, and gives its number in its place."""

    def __init__(self, short_side, skipped):
        super().__init__(None)
        self.short_side, self.skipped, self.seen = short_side, skipped, 0
        self._file, self._container, self._stream = io.BytesIO(), None, None

    def cut(self, picture, count):
        self.box(*picture.shape[:2], 1)
        self.seen += 1
        if self.seen > self.skipped:
            self._encode(np.ascontiguousarray(shrunk(picture, self.short_side, even=True)))
            if self._file.tell() > MAX_BYTES:
                raise ClipError(f"its frames take more than {MAX_BYTES / 2**30:.3g} GiB; give the part wanted")
        return np.array([self.seen - 1])

    def finished(self):
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._file.getvalue()

    def _encode(self, picture):
        if self._container is None:
            self._container = av.open(self._file, "w", format="mp4")
            self._stream = self._container.add_stream("libx264", rate=_RATE, options=_OPTIONS)
            self._stream.height, self._stream.width = picture.shape[:2]
            # Colours at half the size need even sides.
            self._stream.pix_fmt = "yuv444p" if picture.shape[0] % 2 or picture.shape[1] % 2 else "yuv420p"
            self._stream.codec_context.thread_count = 1
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
