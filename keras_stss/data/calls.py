"""Python calls that TensorFlow's threads make, and how they end before the interpreter does."""

import atexit
import contextlib
import threading
import time


class Calls:
    """Python calls of all streams under way, so that they end before the interpreter does.

    A thread of TensorFlow that comes back for the interpreter's lock when the interpreter is going down never returns,
    and the process waits for it for ever. So at exit new calls fail at once, which fills the buffers of a stream that
    somebody still holds, and the last running ones are waited for.
    """

    _QUIET_SECONDS, _LONGEST_WAIT_SECONDS = 0.2, 60

    def __init__(self):
        self._lock = threading.Lock()
        self._running, self._last, self._is_closing = 0, 0.0, False
        atexit.register(self._close)

    def guard(self, function):
        """The function as one that counts as a call."""

        def guarded(*arguments):
            with self._one():
                return function(*arguments)

        return guarded

    @contextlib.contextmanager
    def _one(self):
        with self._lock:
            self._last = time.monotonic()
            if self._is_closing:
                raise RuntimeError("the interpreter is shutting down")
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._last = time.monotonic()

    def _close(self):
        with self._lock:
            self._is_closing = True
        give_up = time.monotonic() + self._LONGEST_WAIT_SECONDS
        while time.monotonic() < give_up:
            with self._lock:
                if not self._running and time.monotonic() - self._last > self._QUIET_SECONDS:
                    return
            time.sleep(0.02)


calls = Calls()
