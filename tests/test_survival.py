"""A run that is killed, stopped, starved of disk space and damaged at random moments ends as one that never was."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import tiny_values

from keras_stss.models import load_model
from keras_stss.training.workers import preempt
from keras_stss.training.workers.preempt import PREEMPTED, Preemption

STEPS = 9
SEED = int(os.environ.get("SURVIVAL_SEED", "6"))

# Runs `train` in processes of its own, one after another: a fork each, since loading TensorFlow takes seconds and has
# started nothing yet. Standard input is a JSON list of [command line, run, what happens]. What happens is null, or
# [what, at which kind of moment, the how manieth, a number to draw the details from]. Standard output is a line of JSON
# for each process: its exit code (a signal as its negative number), its moments, and its words on standard error.
DRIVER = """
import collections, json, os, re, resource, signal, sys, traceback
import numpy as np
from keras_stss.cli import main
from keras_stss.training import loop
from keras_stss.training.saving import checkpoint

counts = collections.Counter()

def watch(run, happening):
    training = []

    def moment(kind):
        counts[kind] += 1
        if happening and (kind, counts[kind]) == tuple(happening[1:3]):
            happen(happening[0], happening[3])

    def happen(what, number):
        if what == "full":  # no file may grow beyond so many bytes
            resource.setrlimit(resource.RLIMIT_FSIZE, ([0, 500, 20_000, 100_000][number % 4], resource.RLIM_INFINITY))
        elif what == "nan":  # a fault of the memory
            variables = [v for v in training[0].variables if "float" in str(v.dtype)]
            poison(variables[number % len(variables)], number)
        else:
            os.kill(os.getpid(), getattr(signal, what))

    def poison(variable, number):
        array = np.array(variable)
        array.ravel()[number % array.size] = [np.nan, np.inf, -np.inf][number % 3]
        variable.assign(array)

    def seen(event, arguments):
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(arguments[0]).startswith(run + "/"):
            moment("file")

    def one_step(self, *arguments):
        training[:] = [self]
        moment("step")
        return step(self, *arguments)

    def write(self, data):
        moment("write")
        return whole(self, data)

    def evaluate(*arguments):
        def counted(done):
            moment("evaluation")
            return arguments[-1](done)
        moment("evaluation")
        return evaluation(*arguments[:-1], counted)

    step, whole, evaluation = loop.Training._one_step, checkpoint._Hashed.write, loop.evaluate
    loop.Training._one_step, checkpoint._Hashed.write, loop.evaluate = one_step, write, evaluate
    sys.addaudithook(seen)

def child(command, run, happening, report):
    watch(run, happening)
    code = main(command)
    report.write(json.dumps(counts).encode())
    return code

for command, run, happening in map(json.loads, sys.stdin):
    words, report = [[open(end, mode + "b", 0) for end, mode in zip(os.pipe(), "rw")] for _ in range(2)]
    process = os.fork()
    if not process:
        code = 99
        os.dup2(words[1].fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            code = child(command, run, happening, report[1])
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    words[1].close()
    report[1].close()
    told = words[0].read().decode(errors="replace").splitlines()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    told = [line for line in told if not re.match("[IW]0000|WARN.*absl", line)]
    print(json.dumps([code, json.loads(report[0].read() or "{}"), told]), flush=True)
"""


class Driver:
    """Runs jobs one after another in forks of one process."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            cwd=Path(__file__).resolve().parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, command, run, happening=None):
        """(exit code, moments, lines on standard error)"""
        print(json.dumps([command, str(run), happening]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


def damage(run, rng):
    """Spoils the newest checkpoint in some way, where there is one before it; its path, or None."""
    files = sorted((run / "checkpoints").glob("step-*.npz"))
    if len(files) < 2:
        return None
    content = bytearray(files[-1].read_bytes())
    place = int(rng.integers(len(content)))
    way = rng.choice(["cut", "flip", "zeros", "other"])
    if way == "cut":
        del content[place:]
    elif way == "flip":
        content[place] ^= 1 << int(rng.integers(8))
    elif way == "zeros":
        content[place : place + 4096] = bytes(len(content[place : place + 4096]))
    else:
        content = b"no checkpoint at all"
    if content == files[-1].read_bytes():
        return None  # zeros in the place of zeros
    files[-1].write_bytes(content)
    return files[-1]


#: What happens → the exit codes of its process; 0: it came too late for anything to be lost; a signal's own: so early
#: that there was nothing to save yet.
CODES = {"SIGKILL": {-9}, "SIGTERM": {PREEMPTED, -15}, "SIGUSR1": {PREEMPTED, -10}, "full": {2}, "nan": {2}}


def draw(rng, moments, what):
    """[what, kind of moment, how manieth, number]; early enough for a process that does not begin at the beginning."""
    kind = "step" if what == "nan" else str(rng.choice(sorted(moments)))
    return [what, kind, int(rng.integers(1, max(moments[kind] // 2, 2))), int(rng.integers(2**31))]


def survive(driver, command, run, moments, rng, happenings):
    """Runs until the run has ended, through all that happens; what happened, for a message."""
    told = []
    for what in [*happenings, None]:
        if what == "damage":
            told.append(["damage", str(damage(run, rng))])
            continue
        happening = what and draw(rng, moments, what)
        code, _, words = driver.run(command, run, happening)
        told.append([happening, code, words[-3:]])
        assert code in ({0} if what is None else CODES[what] | {0}), told
        assert not [line for line in words if "Traceback" in line], (told, words)
        if code == 2:
            (fault,) = [line for line in words if line.startswith("keras-stss: ")]
            # TensorFlow writes files of its own, too.
            assert re.search("cannot be written|File too large" if what == "full" else "checkpoint", fault), told
        if code == PREEMPTED:
            assert "stopped by" in words[-1], told
    return told


def rows(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: row[key] for key in row if key not in ("clips_per_second", "wait_share", "board_share")} for row in lines
    ]


def arrays(run):
    with np.load(run / "checkpoints" / f"step-{STEPS:08d}.npz") as file:
        return {name: file[name] for name in file.files if name != "progress"}


def assert_same_end(whole, other, told):
    first, second = arrays(whole), arrays(other)
    assert first.keys() == second.keys() and len(first) > 50
    for name, array in first.items():
        assert np.array_equal(array, second[name]), (name, told)
    assert rows(other) == rows(whole), told
    weights, others = load_model(whole).get_weights(), load_model(other).get_weights()
    assert all(np.array_equal(weight, other) for weight, other in zip(weights, others, strict=True)), told
    left = [path.name for path in other.rglob("*") if "tmp" in path.name or "unfinished" in path.name]
    assert not left, told


@pytest.fixture(scope="module")
def whole(clip_set, tmp_path_factory):
    """(driver, command line, folder, moments) of a run that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("survival")
    values = tiny_values(clip_set, folder / "whole")
    values["model"] |= {"dropout": 0.4}
    values["train"] |= {"epochs": 3, "batch_size": 6, "checkpoint_steps": 2, "learning_rate": 0.02, "ema": 0.9}
    values["train"]["board"] = {"every": 9, "clips": 1, "mistakes": 0, "motion": 0}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    driver = Driver()
    command = ["train", "--config", str(folder / "tiny.yaml")]
    code, moments, words = driver.run(command, folder / "whole")
    assert code == 0, words
    assert moments["step"] == STEPS and {"file", "write", "evaluation"} <= moments.keys()
    yield driver, command, folder, moments
    driver.close()


def test_a_run_survives_anything(whole):
    """… bit for bit, on one device. SURVIVAL_SEED draws other moments."""
    driver, command, folder, moments = whole
    print(f"SURVIVAL_SEED={SEED}")
    rng = np.random.default_rng(SEED)
    run = folder / f"survivor-{SEED}"
    happenings = ["SIGKILL", "SIGTERM", "full", "damage", "nan", "SIGKILL", "damage"]
    told = survive(driver, [*command, f"train.run={run}"], run, moments, rng, happenings)
    assert_same_end(folder / "whole", run, [SEED, told])


def test_weights_that_are_no_numbers_leave_no_checkpoint(whole):
    """Not even in the statistics of batch normalisation, which no training step reads."""
    driver, command, folder, _ = whole
    model = load_model(folder / "whole")
    statistics = next(weight for weight in model.weights if weight.name == "moving_mean")
    statistics.assign(np.full(statistics.shape, np.nan))
    model.save(folder / "nan.keras")
    run = folder / "started"
    code, _, words = driver.run([*command, f"train.run={run}", f"model.init={folder / 'nan.keras'}"], run)
    assert code == 2 and "holds values that are no numbers" in words[-1] and "moving_mean" in words[-1], words
    assert words[-1].startswith(f"keras-stss: {folder / 'nan.keras'}: ")
    assert not list((run / "checkpoints").glob("*"))


# --- signals ----------------------------------------------------------------------------------------------------------


def test_signals_are_noted_and_handlers_come_back():
    def own(*_):
        seen.append("own")

    seen, before = [], signal.signal(signal.SIGTERM, own)
    try:
        for name in ("SIGTERM", "SIGUSR1"):
            with Preemption() as stop:
                assert not stop.requested and stop.signal is None
                for _ in range(3):  # what comes at the same time counts once
                    signal.raise_signal(getattr(signal, name))
                assert stop.requested and stop.signal == name
            assert signal.getsignal(signal.SIGTERM) is own and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        assert not seen
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_nothing_happens():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with Preemption() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, True)]


def test_a_second_sigterm_ends_at_once():
    """A process that saves for ever; SIGUSR1, which a cluster sends before, is no first SIGTERM."""
    code = (
        "import importlib.util, time\n"
        f"spec = importlib.util.spec_from_file_location('preempt', {preempt.__file__!r})\n"
        "preempt = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(preempt)\n"
        "with preempt.Preemption() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop.requested: time.sleep(0.01)\n"
        "    print(stop.signal, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "SIGUSR1\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(preempt.TOGETHER + 0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
