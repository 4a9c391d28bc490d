"""Clip files -> uint8 frames: videos by PyAV, folders of frames by TensorFlow's picture decoders.

Only the frames that are asked for are converted and kept; frames that no wanted one depends on are not even decoded.
Part of a long video is read from the key frame before it on. Whatever is wrong with a clip comes back as
:class:`ClipError` with a reason that a human understands. Safe to call from many threads.
"""

import os

import numpy as np

from keras_stss.data import records
from keras_stss.data.annotations import Clip, storage
from keras_stss.data.frames import ClipError, Cutter
from keras_stss.data.pictures import read_folder
from keras_stss.data.video import read_video

__all__ = ["ClipError", "read_clip", "read_frames"]

_MISSING = {"video": "no such file", "frames": "no such folder"}


def read_clip(clip: Clip, choose, window=None, cutter=None):
    """Decodes some frames of an annotated clip: those of its part of the video.

    Args:
        clip: the clip.
        choose: as in :func:`read_frames`, a function of the number of frames of the part.
        window: as in :func:`read_frames`.
        cutter: a :class:`~keras_stss.data.frames.Cutter` in place of that of ``window``.
    """
    cutter = cutter or Cutter(window)
    if clip.frames is None:
        return _read(clip.path, clip.kind, choose, clip.start, clip.end, cutter)
    first, after = clip.frames

    def choose_inside(count):
        if first >= count:
            raise ClipError(f"its part starts at frame {first}; there are {count}")
        return first + np.asarray(choose(min(after, count) - first))

    return _read(clip.path, clip.kind, choose_inside, None, None, cutter)


def read_frames(path, kind, choose, start=None, end=None, window=None):
    """Decodes some frames of a clip at their native size.

    Args:
        path: video file, folder of frames, or record of a shard.
        kind: ``"video"``, ``"frames"``, ``"packed_video"`` or ``"packed_frames"``.
        choose: function of the number of frames n (at least 1) that gives the indices wanted, integers from 0 to
            n - 1 that never fall; they may repeat. It may be called more than once: where a video turns out to hold
            another number of frames than its packets promise, the choice is made anew. So it must be a pure function.
        start, end: seconds from the start of a video: the frames shown first at or after ``start`` and before ``end``
            are the clip (where there is none, the one that is seen at ``start``). Reading begins at the key frame
            before ``start``.
        window: function (height, width) -> (top, left, height, width) of the part of every frame to give, for the
            size of the clip's frames, or None for all of it. JPEG files are decoded there only.

    Returns:
        uint8 array (T, H, W, 3), RGB, rotated as the file says, values 0 to 255.

    Raises:
        ClipError: where the clip cannot be read, with the reason.
    """
    return _read(path, kind, choose, start, end, Cutter(window))


def _read(path, kind, choose, start, end, cutter):
    if kind.endswith("frames") and (start is not None or end is not None):
        raise ValueError(f"start and end belong to videos. Received: kind={kind!r}, start={start}, end={end}")
    if start != start or end != end:  # not a number
        raise ValueError(f"start and end must be seconds, or None. Received: start={start}, end={end}")
    try:
        if kind in records.KINDS:
            return records.read_record(path, kind, choose, start, end, cutter)
        if not storage.is_remote(path):  # reading tells, without a request more
            path = os.path.abspath(path)
            if not os.path.exists(path):
                raise FileNotFoundError
        if kind != "video":
            return read_folder(path, choose, cutter)
        return read_video(path, choose, start, end, cutter)
    except MemoryError:
        raise ClipError("not enough memory for its frames") from None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and kind in _MISSING:
            raise ClipError(_MISSING[kind]) from None
        raise ClipError(f"cannot be read: {error.strerror or error}") from None
