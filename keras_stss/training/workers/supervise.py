"""A worker's supervisor: a parent process that starts the worker again where the job has lost another one.

TensorFlow cannot take a lost worker back into a running job, so all of them start anew and go on from the last
checkpoint. The parent forks before TensorFlow is loaded, holds no device, and passes signals on.
"""

import contextlib
import ctypes
import logging
import mmap
import os
import signal
import sys
import threading

from keras_stss.training.workers.cluster import find_cluster
from keras_stss.training.workers.meeting import tell_end
from keras_stss.training.workers.preempt import PREEMPTED

log = logging.getLogger(__name__)

#: Exit code of a worker that has lost another one; 128 and above are worth another try for Kubeflow.
LOST = 138
#: Seconds in which the other workers may notice that this one has ended, and hear why.
FAREWELL = 120
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1
_ENDS = {LOST: "lost another worker", -signal.SIGALRM: "could not connect to the others in time"}


class _Worker:
    """The child: which attempt this process is (0: it has no supervisor), or what the supervisor knows of it."""

    attempt, process, stopped_by = 0, None, None
    #: A byte of memory that both processes see: whether all workers end by what ends this one.
    shared = None


def is_supervised():
    """Whether this process is a worker with a supervisor."""
    return _Worker.attempt > 0


def restarted():
    """Whether this process is a worker that its supervisor has started again."""
    return _Worker.attempt > 1


def all_end():
    """Tells the supervisor that what is about to end this worker ends the others, too: they need no farewell."""
    if _Worker.shared:
        _Worker.shared[0] = 1


def supervise(train):
    """Splits this process into a supervisor and a worker, where the environment describes a cluster.

    To be called before TensorFlow is loaded; where it is already, the process works without a supervisor.

    Args:
        train: :class:`keras_stss.config.TrainConfig`.

    Returns:
        None in the process that is to do the work; in the supervisor, its exit code, once all is over.

    Raises:
        ConfigError: for a cluster that is described wrongly.
    """
    cluster = find_cluster(train)
    if cluster is None or cluster.count == 1 or "tensorflow" in sys.modules or not hasattr(os, "fork"):
        return None
    if threading.current_thread() is not threading.main_thread():
        return None  # only the main thread hears of signals
    _Worker.shared = mmap.mmap(-1, 1)
    for attempt in range(1, train.restarts + 2):
        _Worker.shared[0] = 0
        code = _run_worker(attempt)
        if code is None:
            return None
        if _Worker.stopped_by or not _is_worth_another_try(code):
            if 0 < code < 128 and not _Worker.shared[0]:  # nobody will start it again
                tell_end(cluster, code, FAREWELL)
            if code == -signal.SIGUSR1:  # asked to stop before it could listen; 128 + 10 would mean LOST
                return PREEMPTED
            return code if code >= 0 else 128 - code
        what = _ENDS.get(code) or f"was ended by {signal.Signals(-code).name}"
        if attempt <= train.restarts:
            log.warning("worker %d %s; starting again (%d of %d)", cluster.index, what, attempt, train.restarts)
    log.error("worker %d %s; it was started again %d times (train.restarts)", cluster.index, what, train.restarts)
    return LOST if code == LOST else 128 - code


def _is_worth_another_try(code):
    return code == LOST or code < 0


def _run_worker(attempt):
    """Forks. Returns None in the child; in the parent, the child's exit code, or minus the signal that ended it."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    passed_on = [number for number in _PASSED_ON if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup
    # A signal that comes before the child is known would be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
    process = os.fork()
    if process == 0:
        _Worker.attempt, _Worker.process = attempt, None
        _die_with(parent)
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which passes it on once
        for number in passed_on:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
        return None
    _Worker.process = process
    before = {number: signal.signal(number, _pass_on) for number in passed_on}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
    try:
        status = os.waitpid(process, 0)[1]
    finally:
        _Worker.process = None
        for number, handler in before.items():
            signal.signal(number, handler)
    return os.waitstatus_to_exitcode(status)


def _pass_on(number, _):
    _Worker.stopped_by = number
    if _Worker.process:
        with contextlib.suppress(ProcessLookupError):
            os.kill(_Worker.process, number)


def _die_with(parent):
    """The kernel ends this process when its parent ends; Linux only."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
