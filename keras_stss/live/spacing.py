"""Which frames of a stream the model gets: as far apart as those of the clips that it was trained on."""

import statistics

from keras_stss.config.data import DENSE_WINDOW
from keras_stss.data.annotations import Clip, DataError, read_annotations
from keras_stss.data.decode import ClipError, read_clip
from keras_stss.data.video import describe

#: Clips whose length is looked at.
LOOKED_AT = 9
#: Seconds of a clip where there is none to look at: about those of Something-Something.
USUAL_SECONDS = 4.0
_ROUNDING = 1e-3  # seconds: Matroska has times in milliseconds


class Spacing:
    """Says of each frame whether it is due.

    Args:
        seconds: from one frame for the model to the next, or
        frames: how many frames of the stream that are; one of the two.

    Attributes:
        missed: frames that were due, but did not come in time.
    """

    def __init__(self, seconds=None, frames=None):
        if (seconds is None) == (frames is None) or not (frames if seconds is None else seconds) > 0:
            raise ValueError(f"one of seconds and frames must be given, above 0. Received: {seconds=}, {frames=}")
        self.seconds, self.frames, self.missed = seconds, frames, 0
        self._next = None

    def is_due(self, frame):
        """Whether the model gets this :class:`~keras_stss.live.feed.Frame`; times lie on a grid, so none adds up."""
        place, step = (frame.time, self.seconds) if self.frames is None else (frame.number, self.frames)
        if self._next is None:
            self._next = place + step
            return True
        if place < self._next - _ROUNDING:
            return False
        late = int((place - self._next + _ROUNDING) // step)
        self.missed += late
        self._next += (late + 1) * step
        return True

    def __str__(self):
        if self.frames is None:
            return f"every {self.seconds:.3g} s"
        return "every frame" if self.frames == 1 else f"every {self.frames} frames"


def spacing_of(data):
    """The spacing of a run's clips.

    Dense clips have it in the config. The frames of others are spread over the whole clip, so some clips of the set are
    looked at, where it is there.

    Args:
        data: :class:`keras_stss.config.DataConfig`.

    Returns:
        (:class:`Spacing`, a line that says where it comes from)
    """
    if data.sampling == "dense":
        return Spacing(frames=DENSE_WINDOW // data.frames), f"data.sampling is dense, {data.frames} frames of 64"
    lengths = _lengths(data)
    if not lengths:
        why = f"as of {data.frames} frames of {USUAL_SECONDS:g} s: the run's data set is not there to look at"
        return Spacing(seconds=USUAL_SECONDS / data.frames), why
    seconds = [count / rate for count, rate in lengths if rate]
    if seconds:
        length = statistics.median(seconds)
        why = f"as of {data.frames} frames of {length:.3g} s, the length of the run's clips"
        return Spacing(seconds=length / data.frames), why
    count = statistics.median(count for count, _ in lengths)
    why = f"as of {data.frames} of {count:g} frames, the length of the run's clips"
    return Spacing(frames=max(round(count / data.frames), 1)), why


def _lengths(data):
    """(frames, frames a second or None) of some of the set's validation clips."""
    try:
        clips = read_annotations(data).validation
    except (DataError, OSError):
        return []
    found = []
    for clip in clips[:: -(-len(clips) // LOOKED_AT)]:
        try:
            count = _count(clip)
            rate = describe(clip.path)["rate"] if clip.kind == "video" else None
        except (ClipError, OSError):
            continue
        found.append((count, rate))
    return found


def _count(clip: Clip):
    counts = []

    def first(count):
        counts.append(count)
        return [0]

    read_clip(clip, first)
    return counts[-1]
