"""Frames of a camera, an address on a network or a file, one after the other, by PyAV."""

import os
import re
import stat
import sys
import time

import av
import numpy as np

from keras_stss.data.frames import MAX_PIXELS, ClipError, check_size
from keras_stss.data.video import falls_short

#: Seconds without a frame after which a camera or an address counts as gone.
PATIENCE = 10.0
#: Frames one after the other that cannot be decoded, after which a stream counts as damaged altogether.
MOST_DAMAGED = 300
#: The same of packets that cannot be read.
MOST_UNREAD = 10

_DEVICES = ("v4l2", "avfoundation", "dshow", "gdigrab", "x11grab", "fbdev", "lavfi")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_RETRY_SECONDS = 0.005
_LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


class Source:
    """Opens a stream of pictures.

    Args:
        name: a file; a camera: its number, a device such as ``/dev/video0``, or ``FORMAT:NAME`` of one of FFmpeg's
            devices (``v4l2:/dev/video2``, ``avfoundation:0``, ``dshow:video=NAME``, ``x11grab::0``, and
            ``lavfi:testsrc2=rate=25,realtime`` for one that is made up); or an address (``rtsp://…``, ``http://…``).

    Attributes:
        is_live: whether frames come when they come, as of a camera; else they have times to be shown at.
        rate: frames a second that the stream promises, or None.
        damaged: frames so far that could not be decoded.
        promised: pictures so far that came in, those that were left out by :attr:`skip` among them.
        left_out: whether anything was left out by :attr:`skip` so far.
        skip: what need not be decoded, as FFmpeg calls it: ``"DEFAULT"``, ``"NONREF"`` (what no other depends on) or
            ``"NONKEY"``.

    Raises:
        ClipError: where it cannot be opened.
    """

    def __init__(self, name):
        self.damaged, self.promised, self.skip, self.left_out, self._end = 0, 0, "DEFAULT", False, 0.0
        path, form, self._is_file = _meant(name)
        # A playlist in video's clothing must not fetch from the network.
        options = {"max_pixels": str(2 * MAX_PIXELS)} | ({"protocol_whitelist": "file"} if self._is_file else {})
        timeout = None if self._is_file else (PATIENCE, PATIENCE)
        try:
            self._container = av.open(path, format=form, options=options, timeout=timeout, **_LENIENT)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise ClipError(_reason(error, "not a video, or its header is damaged")) from None
        if not self._container.streams.video or self._container.streams.video[0].codec_context is None:
            self._container.close()
            raise ClipError("no video stream that can be decoded here")
        self._stream = self._container.streams.video[0]
        self._context = self._stream.codec_context
        self._context.thread_type = "SLICE"  # frames side by side would come later
        self._context.options = {"max_pixels": str(2 * MAX_PIXELS)}
        self.rate = float(self._stream.average_rate) if self._stream.average_rate else None
        self.is_live = not self._is_file and not self._container.duration

    def frames(self):
        """Yields (seconds since the first frame by the stream's own times, uint8 (H, W, 3)).

        The pictures are turned as the stream says, and may change in size. Times never fall.

        Raises:
            ClipError: where the stream breaks off, or a file ends before its header says.
        """
        reformatter, begin, last, wrong = av.video.reformatter.VideoReformatter(), None, None, 0
        for packet in self._packets():
            if self._context.skip_frame != self.skip:
                self._context.skip_frame, self.left_out = self.skip, True
            self.promised += bool(packet is not None and packet.size)
            try:
                decoded = self._context.decode(packet)
                wrong = wrong if not decoded else 0
            except (av.FFmpegError, ValueError):
                decoded, wrong, self.damaged = [], wrong + 1, self.damaged + 1
                if wrong == MOST_DAMAGED:
                    raise ClipError(f"damaged: {wrong} frames one after the other cannot be decoded") from None
            for frame in decoded:
                check_size(frame.width, frame.height)
                if frame.pts is None:
                    last = 0.0 if last is None else last + 1 / (self.rate or 25)
                else:
                    seconds = float(frame.pts * self._stream.time_base)
                    begin = seconds - (last or 0.0) if begin is None else begin
                    last = max(seconds - begin, last or 0.0)
                picture = reformatter.reformat(frame, format="rgb24").to_ndarray()
                yield last, np.rot90(picture, round(frame.rotation / 90)) if frame.rotation else picture
        if self._is_file and falls_short(self._container, self._stream, self._end):
            raise ClipError("truncated: ends before its header says")

    def close(self):
        """Lets the file or camera go."""
        self._container.close()

    def _packets(self):
        """Its packets; None at the end, which empties the decoder."""
        unread, streams = 0, () if self._is_file else (self._stream,)  # of a file all, as its length is that of all
        while True:
            try:
                for packet in self._container.demux(*streams):
                    unread = 0
                    if packet.size and packet.pts is not None:
                        self._end = max(self._end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                    if packet.size and packet.stream.index == self._stream.index:
                        yield packet
                break
            except av.EOFError:
                break
            except av.BlockingIOError:  # of cameras that have no frame yet
                time.sleep(_RETRY_SECONDS)
            except (av.FFmpegError, OSError) as error:
                unread += 1
                if not isinstance(error, av.InvalidDataError) or unread == MOST_UNREAD:
                    raise ClipError(f"broke off: {_reason(error, 'its packets cannot be read')}") from None
        yield None


def _meant(name):
    """(path, FFmpeg's format or None, whether it is a file) of what a user calls a source."""
    if name.isdecimal():
        return _camera(int(name))
    if os.path.exists(name):
        mode = os.stat(name).st_mode
        if stat.S_ISCHR(mode):
            return name, "v4l2", False
        if stat.S_ISDIR(mode):
            raise ClipError("is a folder, not a video")
        if stat.S_ISREG(mode) and os.path.getsize(name) == 0:
            raise ClipError("empty file (zero bytes)")
        return os.path.abspath(name), None, True  # in 12:30.mp4 FFmpeg would see a protocol
    if _SCHEME.match(name):
        return name, None, False
    form, _, rest = name.partition(":")
    if form in _DEVICES and rest:
        return rest, form, False
    raise ClipError(
        "no such file, nor a camera (its number, /dev/video0, or FORMAT:NAME with a FORMAT of "
        f"{', '.join(_DEVICES)}), nor an address (rtsp://…)"
    )


def _camera(number):
    if sys.platform == "darwin":
        return str(number), "avfoundation", False
    if sys.platform == "win32":
        raise ClipError("cameras have names here: dshow:video=NAME")
    return f"/dev/video{number}", "v4l2", False


def _reason(error, otherwise):
    """Why FFmpeg failed, in words."""
    if isinstance(error, av.InvalidDataError | ValueError):
        return otherwise
    if isinstance(error, av.ExitError):
        return f"no answer for {PATIENCE:.0f} s"
    return (getattr(error, "strerror", None) or str(error)).lower()
