"""A run that was killed and continued ends exactly as one that was not."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from conftest import tiny_values

from keras_stss.cli import main
from keras_stss.models import load_model
from keras_stss.training import checkpoint
from keras_stss.training.checkpoint import Checkpoints

STEPS, PER_EPOCH = 20, 5

# Runs `train` in processes of its own, one after another: a fork each, since loading TensorFlow takes seconds and has
# started nothing yet. Standard input is a JSON list of [where to stop, command line]; standard output ends with a JSON
# list of exit codes (a signal as its negative number).
DRIVER = """
import json, os, signal, sys
import numpy as np
from keras_stss.cli import main
from keras_stss.training import checkpoint, loop

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may have been told to ignore it

def stop_before_step(step, number):
    whole = loop._Training._one_step
    def one_step(training, batch, progress):
        if training.state["step"] == step:
            os.kill(os.getpid(), number)
        whole(training, batch, progress)
    loop._Training._one_step = one_step

def kill_in_the_middle_of_saving(step):
    def savez(file, **arrays):
        whole(file, **arrays)
        if json.loads(arrays["progress"].tobytes())["step"] == step:
            file.flush()
            os.ftruncate(file.fileno(), file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)
    whole, checkpoint.np.savez = np.savez, savez

def child(where, command):
    if where:
        kind, step = where
        if kind == "save":
            kill_in_the_middle_of_saving(step)
        else:
            stop_before_step(step, getattr(signal, kind))
    return main(command)

codes = []
for where, command in json.load(sys.stdin):
    sys.stdout.flush()
    process = os.fork()
    if not process:
        code = 99
        try:
            code = child(where, command)
        finally:
            sys.stdout.flush()
            os._exit(code)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
print(json.dumps(codes))
"""


def run_all(jobs):
    result = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(jobs),
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


@pytest.fixture(scope="module")
def runs(clip_set, tmp_path_factory):
    """Three runs of one recipe: never stopped, stopped three times, and with damaged checkpoints.

    The recipe has all that draws at random or keeps a state: dropout, augmentation, momentum, a motion block. One clip
    cannot be read: with this seed it is drawn early in the second epoch, before the checkpoint from which one of the
    processes goes on, and late in the third, which that process does not reach before it writes the second's figures.
    """
    folder = tmp_path_factory.mktemp("resume")
    root = shutil.copytree(clip_set, folder / "set")
    (root / "8.mp4").write_bytes(b"")
    values = tiny_values(root, folder / "whole")
    selfy = {"channels": 8, "window": [3, 3], "temporal_offsets": [-1, 0]}
    selfy |= {"extraction_channels": [4], "integration_channels": [4]}
    values["model"] |= {"dropout": 0.4, "temporal": "tsm", "insert": {"res3": {"selfy": selfy}}}
    values["train"] |= {"epochs": STEPS // PER_EPOCH, "checkpoint_steps": 3, "keep_checkpoints": 4}
    values["train"] |= {"learning_rate": 0.02, "schedule": {"milestones": [2.5], "warmup_epochs": 1}}
    path = folder / "resume.yaml"
    path.write_text(yaml.safe_dump(values))
    whole = ["train", "--config", str(path)]
    stopped = [*whole, f"train.run={folder / 'stopped'}"]
    jobs = [
        [None, whole],
        [["SIGKILL", 8], stopped],  # in the middle of an epoch, two steps after a checkpoint
        [["save", 10], stopped],  # after the epoch's line of metrics, while its checkpoint is half on the disk
        [["SIGINT", 13], stopped],  # Ctrl-C
        [None, stopped],
    ]
    codes, errors = run_all(jobs)
    assert codes == [0, -9, -9, 130, 0], errors
    return {"folder": folder, "command": whole, "errors": errors}


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def rows(run, *without):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("clips_per_second", *without)} for row in lines]


def assert_same_end(one, other):
    last = f"step-{STEPS:08d}.npz"
    first, second = arrays(one / "checkpoints" / last), arrays(other / "checkpoints" / last)
    assert first.keys() == second.keys()
    assert len(first) > 50
    for name, array in first.items():
        assert np.array_equal(array, second[name]), name
    weights, others = load_model(one).get_weights(), load_model(other).get_weights()
    assert all(np.array_equal(weight, other) for weight, other in zip(weights, others, strict=True))


def test_a_stopped_run_ends_bit_for_bit_as_a_whole_one(runs):
    assert_same_end(runs["folder"] / "whole", runs["folder"] / "stopped")


def test_a_stopped_run_writes_the_same_metrics(runs):
    whole, stopped = rows(runs["folder"] / "whole", "unreadable"), rows(runs["folder"] / "stopped", "unreadable")
    assert [row["epoch"] for row in whole] == [1, 2, 3, 4]
    assert stopped == whole


def test_a_stopped_run_counts_the_same_unreadable_clips(runs):
    whole, stopped = rows(runs["folder"] / "whole"), rows(runs["folder"] / "stopped")
    assert [row["unreadable"] for row in whole] == [1, 1, 1, 1]
    assert [row["unreadable"] for row in stopped] == [1, 1, 1, 1]


def test_each_process_says_where_it_goes_on(runs):
    log = (runs["folder"] / "stopped" / "log.txt").read_text()
    told = [line.rpartition("continuing at ")[2] for line in log.splitlines() if "continuing at" in line]
    assert told == ["step 6 of 20", "step 9 of 20", "step 12 of 20"]
    assert "interrupted; the same command goes on from the last checkpoint" in runs["errors"]
    assert "Traceback" not in runs["errors"]
    assert "continuing" not in (runs["folder"] / "whole" / "log.txt").read_text()


def test_nothing_unfinished_stays(runs):
    for name in ("whole", "stopped"):
        names = [path.name for path in (runs["folder"] / name).rglob("*")]
        assert not [name for name in names if "tmp" in name or "unfinished" in name]


def test_the_last_checkpoint_tells_its_place(runs):
    progress = json.loads(
        arrays(runs["folder"] / "whole" / "checkpoints" / f"step-{STEPS:08d}.npz")["progress"].tobytes()
    )
    # 18 places an epoch, one clip unreadable: 20 batches of 4 went through more than 80 places.
    assert progress["position"] > 80
    assert progress["step"] == STEPS


def test_damaged_checkpoints_are_passed_over(runs, tmp_path, caplog):
    run = shutil.copytree(runs["folder"] / "whole", tmp_path / "damaged")
    *_, third, second, newest = sorted((run / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    content = bytearray(second.read_bytes())
    content[len(content) // 2] ^= 1
    second.write_bytes(content)
    (run / "checkpoints" / "step-00000019.tmp").write_bytes(b"half")
    # In this process, with what other tests have left in it.
    assert main([*runs["command"], f"train.run={run}"]) == 0
    warnings = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    warnings = [text for text in warnings if "going back" in text]
    assert [text.split(" ")[0] for text in warnings] == [str(newest), str(second)]
    assert f"continuing at step {int(third.stem[5:])} of {STEPS}" in caplog.text
    assert_same_end(runs["folder"] / "whole", run)
    assert rows(run, "unreadable") == rows(runs["folder"] / "whole", "unreadable")
    assert not list(run.rglob("*.tmp"))


# --- the checkpoint file ----------------------------------------------------------------------------------------------


def make(folder, keep=3, value=0.0):
    return Checkpoints(folder, [tf.Variable(tf.fill([3, 2], value)), tf.Variable(7)], keep)


def test_a_checkpoint_comes_back_whole(tmp_path):
    saved = make(tmp_path, value=1.5)
    saved.variables[1].assign(-3)
    saved.save(12, {"step": 12, "best": {"top1": 0.1 + 0.2}, "none": None})
    fresh = make(tmp_path)
    assert fresh.restore() == {"step": 12, "best": {"top1": 0.1 + 0.2}, "none": None}
    assert np.array_equal(fresh.variables[0].numpy(), np.full((3, 2), 1.5, np.float32))
    assert int(fresh.variables[1]) == -3


def test_no_checkpoint_is_none(tmp_path):
    assert make(tmp_path / "new").restore() is None


def test_the_newest_are_kept(tmp_path):
    checkpoints = make(tmp_path, keep=2)
    for step in (5, 50, 999, 1000):
        checkpoints.save(step, {"step": step})
    assert [path.name for path in checkpoints.files()] == ["step-00000999.npz", "step-00001000.npz"]


def test_a_failure_while_writing_leaves_the_earlier_files(tmp_path, monkeypatch):
    checkpoints = make(tmp_path, value=1.0)
    checkpoints.save(1, {"step": 1})
    before = (tmp_path / "step-00000001.npz").read_bytes()

    def full_disk(file, **arrays):
        file.write(b"PK half a file")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.np, "savez", full_disk)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(2, {"step": 2})
    assert [path.name for path in checkpoints.files()] == ["step-00000001.npz"]
    assert (tmp_path / "step-00000001.npz").read_bytes() == before
    assert make(tmp_path).restore() == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.npz"]


def test_any_damage_is_noticed(tmp_path):
    """Cut anywhere, or with a byte changed anywhere: an older file is taken, or the very same values."""
    checkpoints = make(tmp_path, value=1.0)
    checkpoints.save(1, {"step": 1})
    checkpoints.variables[0].assign(tf.fill([3, 2], 2.0))
    checkpoints.save(2, {"step": 2})
    path = tmp_path / "step-00000002.npz"
    whole = path.read_bytes()
    rng, went_back = np.random.default_rng(0), 0
    for number in range(300):
        content = bytearray(whole)
        place = int(rng.integers(len(whole)))
        if number % 3:
            content[place] ^= 1 << int(rng.integers(8))
        else:
            del content[place:]
        path.write_bytes(content)
        fresh = make(tmp_path)
        progress = fresh.restore()
        assert progress in ({"step": 1}, {"step": 2}), place
        assert np.all(fresh.variables[0].numpy() == progress["step"]), place
        went_back += progress["step"] == 1
    assert went_back > 150


def test_checkpoints_written_after_a_damaged_one_survive(tmp_path):
    """With the damaged file still there, the newest by name, the good ones must not be the ones to go."""
    checkpoints = make(tmp_path, keep=1)
    checkpoints.save(20, {"step": 20})
    (tmp_path / "step-00000020.npz").write_bytes(b"damaged")
    checkpoints = make(tmp_path, keep=1)
    assert checkpoints.restore() is None
    checkpoints.save(5, {"step": 5})
    assert make(tmp_path, keep=1).restore() == {"step": 5}


def test_an_unusual_archive_is_passed_over(tmp_path):
    checkpoints = make(tmp_path)
    checkpoints.save(1, {"step": 1})
    (tmp_path / "step-00000002.npz").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "step-00000003.npz", "w") as file:
        file.writestr("progress.npy", "no array")
    np.savez(tmp_path / "step-00000004.npz", progress=np.zeros(1, np.uint8))
    (tmp_path / "step-5.npz.part").write_bytes(b"")
    assert make(tmp_path).restore() == {"step": 1}
