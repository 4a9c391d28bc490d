"""Being asked to stop: by a cluster that wants its machine back, or at the end of a job's time."""

import contextlib
import os
import signal
import threading
import time

#: Exit code of a run that was asked to stop, has saved and can be started again: that of a process ended by SIGTERM.
#: Kubeflow's restart policy ExitCode starts such a worker again (128 and above), a Slurm script asks for it.
PREEMPTED = 143

#: Seconds in which signals count as one: a launcher may pass one on that the process, in its group, also got itself.
TOGETHER = 1.0


class Preempted(Exception):
    """The run was asked to stop, and has. Its text is meant for the user."""


class _Leave(BaseException):
    """No ``Exception``: Keras adds the arguments of the layer at hand to the text of those."""


@contextlib.contextmanager
def clearing_away():
    """SIGTERM ends the block by :class:`Preempted`, so that what it has made is removed on the way out."""

    def leave(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise _Leave

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except _Leave:
        raise Preempted("stopped by SIGTERM; nothing was kept") from None
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


class Preemption:
    """Notes SIGTERM and SIGUSR1 (``sbatch --signal=USR1@120``), to be used with ``with``.

    A second SIGTERM ends the process at once. Outside the main thread this does nothing, as Python handles signals
    there only. Afterwards the handlers that were there before are back.

    Attributes:
        requested: whether one of them has come.
        signal: its name, or None.
    """

    def __init__(self):
        self.requested, self.signal = False, None
        self._asked = None  # when the first SIGTERM came
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            # None: a handler that was not set from Python, and that Python cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number, _):
        now = time.monotonic()
        if number == signal.SIGTERM:
            self._asked = now if self._asked is None else self._asked
            if now - self._asked >= TOGETHER:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGTERM)
        self.requested, self.signal = True, self.signal or signal.Signals(number).name
