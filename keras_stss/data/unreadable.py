"""Clips that cannot be read: noted, told once, and too many of them stop a run."""

import contextlib
import logging
import threading

import tensorflow as tf

from keras_stss.data.annotations import Clip, DataError

logger = logging.getLogger(__name__)

_SHOWN = 5


class TooManyUnreadable(DataError):
    """More clips than ``data.max_unreadable`` allows cannot be read."""


class Unreadable:
    """The clips of a set that could not be read: their place -> reason. Safe to use from many threads.

    Args:
        clips: the set, over which the share is taken.
        max_share: ``data.max_unreadable``, from 0 to 1. A set without any readable clip is always too much.
    """

    def __init__(self, clips: list[Clip], max_share: float):
        self.total = len({clip.place for clip in clips})
        self.max_share = max_share
        self._reasons = {}
        self._lock = threading.Lock()

    def __len__(self):
        return len(self._reasons)

    def __contains__(self, place):
        return place in self._reasons

    @property
    def reasons(self) -> dict[str, str]:
        """A copy: place -> reason, in the order in which they were found."""
        with self._lock:
            return dict(self._reasons)

    def restore(self, reasons: dict[str, str]):
        """Takes over what was found before a run was interrupted."""
        with self._lock:
            self._reasons = {**reasons, **self._reasons}

    def record(self, place: str, reason: str):
        """Notes a clip, logs it the first time, and raises as :meth:`check` does."""
        with self._lock:
            is_new = place not in self._reasons
            self._reasons.setdefault(place, reason)
        if is_new:
            logger.warning("unreadable clip left out: %s: %s", place, reason)
        self.check()

    def check(self):
        """Raises :class:`TooManyUnreadable` where more than the allowed share is unreadable."""
        reasons = self.reasons
        count = len(reasons)
        if not count or (count / self.total <= self.max_share and count < self.total):
            return
        shown = [f"  {place}: {reason}" for place, reason in list(reasons.items())[:_SHOWN]]
        if count > len(shown):
            shown.append(f"  and {count - len(shown)} more")
        share, limit = count / self.total, ""
        if share > self.max_share:
            limit = f"; data.max_unreadable={self.max_share:g} allows {self.max_share:.1%}"
        raise TooManyUnreadable(
            f"{count} of {self.total} clips cannot be read ({share:.1%}){limit}\n" + "\n".join(shown)
        )

    @contextlib.contextmanager
    def explained(self):
        """Around the use of a stream: where it fails because of unreadable clips, raises what :meth:`check` does."""
        try:
            yield
        except tf.errors.OpError:
            self.check()
            raise
