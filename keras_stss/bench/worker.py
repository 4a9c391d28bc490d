"""One process that times contestants: ``python worker.py CONTESTANTS.py``, spoken to in JSON lines.

Runs in any interpreter that has NumPy: ours, and those of the peers' environments, so that all are timed by the same
lines of code. The file of contestants defines ``CONTESTANTS``, {(kind, name): make}, and ``VERSIONS``, {library:
version}; ``make(case, arrays, mode)`` returns (call, fetch): ``call()`` computes once and has ended when it returns,
and ``fetch(result)`` gives {name: NumPy array}, channels last. ``mode`` is "forward" or "step", which is forward and
backward, both given back.

Requests, one JSON object a line, with one line in answer:
    {"do": "prepare", "key", "kind", "name", "case", "arrays": file.npz, "mode", "outputs": file.npz}
    {"do": "time", "key", "seconds", "warm"} → {"times": [seconds of a call], "processor": mean of a call}
    {"do": "memory", "key"}               → {"bytes"}: highest use during a call, what it gives back included
    {"do": "forget", "key"}
An answer {"error": text} stands for whatever went wrong.
"""

import ctypes
import gc
import json
import os
import runpy
import sys
import time
from pathlib import Path

import numpy as np

#: Seconds.
LONG = 0.5
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(path):
    """Answers requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    sys.path.pop(0)  # this file's folder, whose names are none of the contestants' business
    names = runpy.run_path(path)
    contestants = _Contestants(names["CONTESTANTS"])
    print(json.dumps({"versions": names["VERSIONS"]}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(contestants, request.pop("do"))(**request)
        except Exception as error:  # any library's: the reason is printed where the figures would stand
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            # In TensorFlow's long messages about traced code the reason comes last.
            reply = {"error": lines[-1] if len(lines) > 1 else f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)


class _Contestants:
    """The contestants, and by key those that are ready to run."""

    def __init__(self, makers):
        self.makers = makers
        self.ready = {}

    def prepare(self, key, kind, name, case, arrays, mode, outputs):
        with np.load(arrays) as file:
            call, fetch = self.makers[kind, name](case, dict(file), mode)
        np.savez(outputs, **fetch(call()))
        self.ready[key] = call
        return {}

    def time(self, key, seconds, warm=False):
        """Times of calls during about so many seconds.

        The first call wakes the threads and fills the caches after another process had the machine; it counts only
        where it is so long that this does not matter, and not with ``warm``. Processor time is that of all threads of
        this process, not of others that it has started.
        """
        began = time.process_time()
        first = _time(self.ready[key])
        times = [first] if first > LONG and not warm else []
        if not times:
            began = time.process_time()
        while not times or sum(times) < seconds:
            times.append(_time(self.ready[key]))
        return {"times": times, "processor": (time.process_time() - began) / len(times)}

    def memory(self, key):
        """Growth of the process's high-water mark over one call, in a process started to hide nothing of it."""
        if not os.access(RESET, os.W_OK):
            raise OSError("only Linux tells a process's peak memory and lets it be reset")
        _time(self.ready[key])  # scratch that is kept from call to call is there already
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before = _status("VmRSS")
        RESET.write_text("5")
        result = self.ready[key]()
        peak = _status("VmHWM")
        del result
        return {"bytes": peak - before}

    def forget(self, key):
        self.ready.pop(key, None)
        gc.collect()
        return {}


def _time(call):
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    del result  # freeing it is not the contestant's time
    return seconds


def _status(field):
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1])
