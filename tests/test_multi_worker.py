"""Two workers on this machine, each started by the command line: equal to one device, and they survive one another."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import TRAIN, tiny_values, write_clip_set

from keras_stss.cli import main

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 600  # seconds; a machine with many other things to do is slow


class Job:
    """Two workers, which share no folder but the data.

    Args:
        folder: path; worker i runs in ``folder / "run-<i>"``.
        recipe: YAML file.
        overrides: for the command line.
    """

    def __init__(self, folder, recipe, *overrides):
        self.folder, self.recipe, self.overrides = folder, recipe, overrides
        folder.mkdir()
        self.sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in self.sockets]
        for each in self.sockets:
            each.close()
        self.checkpoints = folder / "run-0" / "checkpoints"
        self.processes = [self.start(index) for index in range(2)]

    def start(self, index):
        cluster = {"cluster": {"worker": self.addresses}, "task": {"type": "worker", "index": index}}
        with open(self.folder / f"output-{index}.txt", "a") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "keras_stss", "train", "--config", str(self.recipe),
                 "train.strategy=multi_worker", f"train.run={self.folder}/run-{index}", *self.overrides],
                cwd=ROOT, env=os.environ | {"TF_CONFIG": json.dumps(cluster)}, stdout=output, stderr=output,
            )  # fmt: skip

    def wait_for_checkpoint(self):
        give_up = time.monotonic() + PATIENCE
        while not list(self.checkpoints.glob("step-*.npz")):
            assert time.monotonic() < give_up and self.processes[0].poll() is None, self.output(0)
            time.sleep(0.01)

    def codes(self):
        try:
            return [process.wait(PATIENCE) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def output(self, index):
        return (self.folder / f"output-{index}.txt").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def recipe(folder):
    """A recipe of data of which one validation clip cannot be read."""
    root = write_clip_set(folder / "clips")
    (root / f"{TRAIN + 2}.mp4").write_bytes(b"no video")
    values = tiny_values(root, folder / "unused")
    values["data"]["max_unreadable"] = 0.2
    values["train"] |= {"learning_rate": 0.002, "epochs": 3, "checkpoint_steps": 1, "keep_checkpoints": 1000}
    values["evaluate"]["every"] = 2
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def on_one_device(folder, recipe, *overrides):
    assert main(["train", "--config", str(recipe), f"train.run={folder}", *overrides]) == 0
    return folder


@pytest.fixture(scope="module")
def killed(folder, recipe):
    """A job one of whose workers was killed, and started again with the same command."""
    job = Job(folder / "killed", recipe, "train.sync_batch_norm=true")
    job.wait_for_checkpoint()
    job.processes[1].kill()
    job.processes[1].wait()
    shutil.rmtree(job.folder / "run-1", ignore_errors=True)  # as on another machine
    job.processes[1] = job.start(1)
    assert job.codes() == [0, 0], job.output(0) + job.output(1)
    return job


@pytest.fixture(scope="module")
def stopped(folder, recipe):
    """A job one of whose workers stood still for longer than TensorFlow waits, and was asked to stop, far from its end.

    The supervisor has one child, the worker.
    """
    job = Job(folder / "stopped", recipe, "train.epochs=1000", "evaluate.every=1000")
    job.wait_for_checkpoint()
    supervisor = job.processes[1].pid
    worker = int(Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text())
    os.kill(worker, signal.SIGSTOP)
    time.sleep(25)
    os.kill(worker, signal.SIGCONT)
    job.processes[1].send_signal(signal.SIGUSR1)
    return job, job.codes()


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files if name != "progress"}


def test_a_killed_worker_comes_back_and_both_end_as_one_device(killed, folder, recipe):
    """Normalised over both workers' clips: losses, scores and all variables are those of one device."""
    assert "worker 1 of the job has gone" in killed.output(0)
    assert "what TensorFlow says of the lost worker: " in killed.output(0)
    assert "starting again (1 of 3)" in killed.output(0)
    assert "continuing at step" in (killed.folder / "run-0" / "log.txt").read_text()
    one = on_one_device(folder / "one", recipe, "train.sync_batch_norm=true")
    expected, found = rows(one), rows(killed.folder / "run-0")
    assert [row["epoch"] for row in found] == [1, 2, 3]
    assert found[-1]["val_clips"] == 6
    assert found[-1]["val_unreadable"] == 1
    for row, other in zip(expected, found, strict=True):
        for key in ("clips_per_second", "wait_share", "board_share"):
            del row[key], other[key]
        assert other == pytest.approx(row, rel=1e-5, abs=1e-5)
    expected, found = (arrays(run / "checkpoints" / "step-00000015.npz") for run in (one, killed.folder / "run-0"))
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_chief_alone_writes_the_run(killed):
    assert (killed.folder / "run-0" / "best.keras").is_file()
    assert not [path for path in (killed.folder / "run-1").rglob("*") if path.is_file()]


def test_workers_stop_together_and_each_sees_its_own_share(stopped, folder, recipe):
    """Without synchronisation a worker normalises over its own clips, as one device does over a part of two."""
    job, codes = stopped
    assert codes == [143, 143], job.output(0) + job.output(1)
    assert "has gone" not in job.output(0) + job.output(1)
    last = max(job.checkpoints.glob("step-*.npz"))
    step = int(last.stem.removeprefix("step-"))
    epochs = math.ceil(step / 5)
    one = on_one_device(folder / "parts", recipe, "train.accumulate=2", f"train.epochs={epochs}", "evaluate.every=1000")
    expected, found = arrays(one / "checkpoints" / last.name), arrays(last)
    assert expected.keys() == found.keys()
    # The moving statistics are those of one part after the other there, and an average of both here.
    names = trainable(one)
    assert len(names) > 10
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def trainable(run):
    """Names of the trainable variables in a checkpoint, which holds the model's variables first, in its order."""
    from keras_stss.models import load_model

    model = load_model(run)
    learned = {variable.path for variable in model.trainable_variables}
    return [f"{number:04d}" for number, variable in enumerate(model.variables) if variable.path in learned]
