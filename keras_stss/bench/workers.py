"""The processes that contestants run in: ours, and one for each environment of peers."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
SCRIPTS = CHECKOUT / "benchmarks" / "peers"

#: Environment of peers → (folder of its virtual environment, its contestants).
PEERS = {
    "torch": (".venv-peers", "torch_peers.py"),
    "addons": (".venv-peers-tfa", "addons_peers.py"),
}
#: Makes the system's memory show what a process holds: large blocks are taken from it and given back one by one.
#: TensorFlow keeps a stock of its own as long as oneDNN is on; here it is off, and its stock kernels run.
BARE_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(64 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 1024),
    "TF_ENABLE_ONEDNN_OPTS": "0",
}


class BenchError(ValueError):
    """What the user can mend."""


class WorkerError(RuntimeError):
    """Why a contestant has no figures, in one line."""


class Workers:
    """Starts processes when they are first asked, and ends them all.

    Args:
        peers: folder that holds the peers' virtual environments (default: the checkout).
        environment: {name: value} for all of them, ``BARE_MEMORY`` where memory is to be measured.
    """

    def __init__(self, peers=None, environment=()):
        self.peers = Path(peers) if peers else CHECKOUT
        self.environment = dict(environment)
        self.started, self.failed = {}, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.started.values():
            worker.process.stdin.close()  # its loop ends with its input
        for worker in self.started.values():
            worker.end()

    def ask(self, where, **request):
        """One answer of the worker ``where`` ("ours", or a key of ``PEERS``); raises :class:`WorkerError`."""
        return self.start(where).ask(request)

    def start(self, where):
        """The worker, started where it was not."""
        if where in self.failed:
            raise WorkerError(self.failed[where])
        if where not in self.started:
            try:
                python, script, environment = self._command(where)
                self.started[where] = _Worker(python, script, environment | self.environment)
            except WorkerError as error:
                self.failed[where] = str(error)
                raise
        return self.started[where]

    def _command(self, where):
        if where == "ours":
            paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
            return sys.executable, HERE / "contestants.py", {"PYTHONPATH": os.pathsep.join(paths)}
        _, script = PEERS[where]
        python = interpreter(where, self.peers)
        if not (SCRIPTS / script).is_file():
            raise WorkerError(f"no {SCRIPTS / script}: the peers run from a checkout")
        # torchcodec looks for FFmpeg's libraries; `make peers` gives it those that come with PyAV.
        libraries = [str(Path(python).parent.parent / "lib" / "ffmpeg"), os.environ.get("LD_LIBRARY_PATH")]
        return python, SCRIPTS / script, {"PYTHONPATH": "", "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries))}

    def versions(self):
        """{library: version} of all that has been started."""
        return {key: value for worker in self.started.values() for key, value in worker.versions.items()}

    def pids(self):
        return [os.getpid(), *(worker.process.pid for worker in self.started.values())]


def interpreter(where, folder=CHECKOUT):
    """The Python of a peers' environment; raises :class:`WorkerError` with the reason where there is none."""
    environment = Path(folder) / PEERS[where][0]
    python = environment / "bin" / "python"
    if python.is_file():
        return str(python)
    reason = environment / "why-not.txt"  # `make peers` leaves it where an environment could not be made
    text = reason.read_text(encoding="utf-8").strip() if reason.is_file() else "make peers builds it"
    raise WorkerError(f"no environment {environment.name} ({text})")


class _Worker:
    def __init__(self, python, contestants, environment):
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py"), str(contestants)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **quiet, **environment},
        )
        self.versions = self._answer()["versions"]

    def ask(self, request):
        if self.process.poll() is not None:
            raise WorkerError(f"the process had ended with code {self.process.poll()}")
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self._answer()
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _answer(self):
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines() or ["nothing"]
        raise WorkerError(f"the process ended with code {self.process.wait()}: {said[-1]}")

    def end(self):
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
