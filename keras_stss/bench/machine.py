"""The machine that figures were taken on, and whether anything else was using it."""

import datetime
import os
import platform
import time
from pathlib import Path

from keras_stss.config.data import cores

#: Share of the machine that others may take before a figure is marked.
BUSY = 0.1


def describe():
    """{"cpu", "cores", "memory_gb", "system", "gpu", "date"}."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        cpu = fields.get("model name", cpu)
        if "cpu family" in fields:
            cpu += f" (family {fields['cpu family']}, model {fields['model']})"
        flags = fields.get("flags", "").split()
        cpu += ", AVX-512" if "avx512f" in flags else ", AVX2" if "avx2" in flags else ""
    return {
        "cpu": cpu,
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": gpu(),
        "date": datetime.date.today().isoformat(),
    }


def gpu():
    """Name of the first NVIDIA GPU, or None."""
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        return information.read_text().split("Model:")[-1].splitlines()[0].strip()
    return None


class Others:
    """Processor time that went to anybody but the given processes (Linux; elsewhere None).

    Wall time tells nothing about it, and the timed process's own processor time differs between formulations that
    use their threads differently; so the machine's time is compared with that of all our processes.
    """

    def __init__(self, pids):
        self.pids = pids
        self.reset()

    def reset(self):
        self.start = self._read()

    def seconds(self):
        """Processor seconds that others took since the last :meth:`reset`, or None."""
        now = self._read()
        return None if now is None or self.start is None else now - self.start

    def _read(self):
        try:
            total = [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
            ours = sum(map(_ticks, [*self.pids, *_children(self.pids)]))
        except (OSError, ValueError):
            return None
        idle = total[3] + total[4]
        return (sum(total) - idle - ours) / os.sysconf("SC_CLK_TCK")


def wait_until_idle(pids, longest=10.0):
    """Returns when processes and those they have started rest (Linux; elsewhere at once), or after ``longest`` seconds.

    Streams work ahead after they have been asked; that must not slow down the next one to be timed.
    """
    end, used = time.monotonic() + longest, None
    while time.monotonic() < end:
        try:
            before, used = used, sum(map(_ticks, [*pids, *_children(pids)]))
        except (OSError, ValueError):
            return
        if before is not None and used - before <= 1:
            return
        time.sleep(0.1)


def _ticks(pid):
    """Processor time of a process so far."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))


def _children(pids):
    """Processes that the given ones have started, but for those among them; PyTorch's loaders work in such."""
    lists = [Path(f"/proc/{pid}/task/{pid}/children") for pid in pids]
    started = {int(child) for path in lists if path.is_file() for child in path.read_text().split()}
    return started - set(pids)
