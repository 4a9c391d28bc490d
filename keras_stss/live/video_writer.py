"""A video file that grows frame by frame, in no more memory than some frames."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from keras_stss.config import ConfigError

SUFFIXES = (".mp4", ".mkv", ".mov")
_TIME_BASE = Fraction(1, 90_000)  # seconds
_KEY_FRAMES = 60  # frames from one to the next: so much is lost where the process is killed
# No frame waits for a later one. As the numbers of ITU-T H.273, and as browsers want to be told: BT.709.
_OPTIONS = {"preset": "veryfast", "crf": "20", "bf": "0", "g": str(_KEY_FRAMES)}
_PIPE_OPTIONS = _OPTIONS | {"tune": "zerolatency"}
_BT709, _LIMITED = 1, 1


class VideoWriter:
    """Writes frames with times of their own as H.264.

    What was written plays, but for the last seconds, whatever ends the process.

    Args:
        target: path that ends in .mp4, .mkv or .mov, where nothing is yet; or a binary file such as a pipe, which gets
            Matroska.
        height, width: of all frames, in pixels, even.

    Raises:
        ConfigError: where that cannot be written.
    """

    def __init__(self, target, height, width):
        self._last, self._closed = None, False
        is_path = isinstance(target, str | os.PathLike)
        if is_path:
            check_target(target)
        options = {"flush_packets": "1"}
        if is_path and Path(target).suffix.lower() != ".mkv":
            options["movflags"] = "hybrid_fragmented"
        try:
            # As a whole path: in 12:30.mp4 FFmpeg would see a protocol.
            place = os.path.abspath(target) if is_path else target
            self._container = av.open(place, "w", format=None if is_path else "matroska", options=options)
        except OSError as error:
            raise ConfigError(f"{target} cannot be written: {error.strerror}") from None
        stream = self._container.add_stream("libx264", rate=30, options=_OPTIONS if is_path else _PIPE_OPTIONS)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.time_base = _TIME_BASE
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        self._stream = stream

    def add(self, picture, seconds):
        """Adds a frame, uint8 (H, W, 3), to be shown from ``seconds`` on; times that do not rise are moved on.

        Raises:
            BrokenPipeError: where nobody reads the pipe any more.
        """
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
        time = round(seconds / _TIME_BASE)
        self._last = time if self._last is None else max(time, self._last + 1)
        frame.pts, frame.time_base = self._last, _TIME_BASE
        try:
            self._container.mux(self._stream.encode(frame))
        except BrokenPipeError:
            self._closed = True  # nobody reads what would be left
            raise

    def close(self):
        """Writes what is left, once."""
        if not self._closed:
            self._closed = True
            self._container.mux(self._stream.encode())
            self._container.close()


def check_target(path):
    """Raises ConfigError where a video cannot be written under this name."""
    path = Path(path)
    if "libx264" not in av.codecs_available:
        raise ConfigError("this PyAV has no H.264 encoder (libx264; its wheels have it), so it cannot write videos")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"videos are written as {', '.join(SUFFIXES)}. Received: {path}")
    if path.exists():
        raise ConfigError(f"{path} is there already: name another, or remove it")
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: no folder {path.parent}")
