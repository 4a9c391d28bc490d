"""From a source to the newest frame, by a thread that decodes."""

import collections
import dataclasses
import threading

import numpy as np

#: Seconds behind the time at which a frame of a file is due, from which on some frames are not decoded, or most.
BEHIND, FAR_BEHIND, CAUGHT_UP = 0.5, 2.0, 0.1
#: Frames that wait where none is dropped.
MOST_WAITING = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a stream.

    Args:
        number: of those that were decoded, from 0.
        time: seconds since the first, by the stream's own times; of a camera, as they came in.
        arrival: when it was there, on the clock: of a file that is played, when it was due.
        picture: uint8 (H, W, 3).
    """

    number: int
    time: float
    arrival: float
    picture: np.ndarray


def timed(source, now, wait, realtime=True):
    """Yields the :class:`Frame` of a source when each is there.

    Args:
        source: as :class:`keras_stss.live.source.Source`.
        now: function that gives the seconds of a clock.
        wait: function that waits for so many seconds.
        realtime: a file is played at its own rate; where its decoding falls behind, frames are left out. Else its
            frames come as fast as they can be decoded. What is live comes when it comes.
    """
    began = None
    for number, (seconds, picture) in enumerate(source.frames()):
        arrival = now()
        began = arrival if began is None else began
        if source.is_live:
            seconds = arrival - began
        elif realtime:
            behind, arrival = arrival - (began + seconds), began + seconds
            if behind < 0:
                wait(-behind)
            if behind > FAR_BEHIND:
                source.skip = "NONKEY"
            elif behind > BEHIND:
                source.skip = "NONREF"
            elif behind < CAUGHT_UP:
                source.skip = "DEFAULT"
        yield Frame(number, seconds, arrival, picture)


class Waiting:
    """What has come and was not taken yet: the newest frame, or some where none may be dropped. Of one thread.

    Attributes:
        dropped: frames that made room for a newer one.
    """

    def __init__(self, drops):
        self.drops, self.dropped, self._frames = drops, 0, collections.deque()

    @property
    def is_full(self):
        return not self.drops and len(self._frames) >= MOST_WAITING

    def put(self, frame):
        if self.drops and self._frames:
            self._frames.clear()
            self.dropped += 1
        self._frames.append(frame)

    def take(self):
        """The next frame, or None."""
        return self._frames.popleft() if self._frames else None


class Feed:
    """A thread that reads frames, and gives the newest on demand.

    Args:
        frames: function of a function ``wait(seconds)``, which ends early where the feed is closed, that gives the
            iterator of :class:`Frame` to read.
        drops: whether a frame that nobody took makes room for a newer one; else reading waits.
    """

    def __init__(self, frames, drops=True):
        self._waiting, self._changed, self._closed = Waiting(drops), threading.Condition(), threading.Event()
        self._has_ended, self._error = False, None
        self._thread = threading.Thread(target=self._read, args=(frames,), name="frames", daemon=True)
        self._thread.start()

    @property
    def dropped(self):
        """Frames so far that nobody took."""
        return self._waiting.dropped

    def take(self):
        """Waits for a frame, the newest where frames are dropped; None at the end.

        Raises:
            Exception: that reading ended with, once the frames before are taken.
        """
        with self._changed:
            while (frame := self._waiting.take()) is None and not self._has_ended:
                self._changed.wait()
            self._changed.notify_all()
            if frame is None and self._error is not None:
                raise self._error
            return frame

    def close(self, patience=2.0):
        """Ends reading; returns whether the thread has ended, which a camera that hangs may keep from it."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _read(self, frames):
        try:
            for frame in frames(self._closed.wait):
                with self._changed:
                    while self._waiting.is_full and not self._closed.is_set():
                        self._changed.wait()
                    if self._closed.is_set():
                        break
                    self._waiting.put(frame)
                    self._changed.notify_all()
        except Exception as error:  # told to who takes frames
            self._error = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()
