"""A run that was killed and continued ends exactly as one that was not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import tiny_values

from keras_stss.cli import main
from keras_stss.models import load_model

STEPS, PER_EPOCH = 20, 5

# Runs `train` in processes of its own, one after another: a fork each, since loading TensorFlow takes seconds and has
# started nothing yet. Standard input is a JSON list of [where to stop, command line]; standard output ends with a JSON
# list of exit codes (a signal as its negative number).
DRIVER = """
import json, os, signal, sys
from keras_stss.cli import main
from keras_stss.training import loop
from keras_stss.training.saving import checkpoint

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may have been told to ignore it

def stop_before_step(step, number):
    whole = loop.Training._one_step
    def one_step(training, batch, progress):
        if training.state["step"] == step:
            os.kill(os.getpid(), number)
        whole(training, batch, progress)
    loop.Training._one_step = one_step

def kill_in_the_middle_of_saving(step):
    def write_array(archive, name, array):
        if name == "progress":
            saved.append(json.loads(array.tobytes())["step"])
        elif saved[-1] == step and int(name) == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(archive, name, array)
    saved, whole = [], checkpoint._write_array
    checkpoint._write_array = write_array

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
    values["train"] |= {"learning_rate": 0.02, "schedule": {"milestones": [2.5, 9], "warmup_epochs": 1}}
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
    without += ("clips_per_second", "wait_share", "board_share")
    return [{key: value for key, value in row.items() if key not in without} for row in lines]


def progress_of(content):
    """What a checkpoint says of the run's place, without the seconds that it took; takes it out of the arrays."""
    progress = json.loads(content.pop("progress").tobytes())
    progress.pop("best", None)  # of earlier versions
    progress["sums"] = {
        key: value for key, value in progress["sums"].items() if key not in ("seconds", "waited", "board")
    }
    return progress


def assert_same_end(one, other):
    last = f"step-{STEPS:08d}.npz"
    first, second = arrays(one / "checkpoints" / last), arrays(other / "checkpoints" / last)
    assert first.keys() == second.keys()
    assert len(first) > 50
    one_place, other_place = progress_of(first), progress_of(second)
    assert one_place == other_place and "sums" in one_place
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
    whole = (runs["folder"] / "whole" / "log.txt").read_text()
    assert "continuing" not in whole
    assert "train.schedule.milestones: 9 lie behind the last of 4 epochs" in whole


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
    warnings = [record.getMessage() for record in caplog.records if "going back" in record.getMessage()]
    assert [text.split(" ")[0] for text in warnings] == [str(newest), str(second)]
    assert "cut off" in warnings[0] and "SHA-256" in warnings[1]
    assert newest.with_suffix(".damaged").is_file() and second.with_suffix(".damaged").is_file()
    assert f"continuing at step {int(third.stem[5:])} of {STEPS}" in caplog.text
    assert_same_end(runs["folder"] / "whole", run)
    assert rows(run, "unreadable") == rows(runs["folder"] / "whole", "unreadable")
    assert not list(run.rglob("*.tmp"))


def test_a_run_does_not_go_on_with_other_clips(trained_run, clip_set, tmp_path, capsys):
    """As many of them, in other places of the list; that they lie elsewhere makes no difference."""
    run = shutil.copytree(trained_run, tmp_path / "run")
    root = shutil.copytree(clip_set, tmp_path / "set")
    command = ["train", "--config", str(trained_run / "config.yaml"), f"train.run={run}", f"data.root={root}"]
    assert main(command) == 0
    lines = (root / "clips.csv").read_text().splitlines()
    lines[1], lines[2] = lines[2], lines[1]
    (root / "clips.csv").write_text("\n".join(lines) + "\n")
    assert main(command) == 2
    assert f"{run} was begun on other clips" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_goes_on(trained_run, tmp_path):
    """Its checkpoint has no SHA-256, its progress and its config.yaml know less; the end is the same."""
    run = shutil.copytree(trained_run, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    for key in ("resume", "accumulate", "rates", "decays", "ema", "batch_norm", "twins", "best", "board"):
        del config["train"][key]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "checkpoints" / "step-00000020.npz").unlink()
    path = run / "checkpoints" / "step-00000018.npz"
    content = arrays(path)
    progress = json.loads(content.pop("progress").tobytes())
    progress["sums"] = {key: progress["sums"][key] for key in ("loss", "correct", "steps")}
    progress["best"] = {"epoch": 1, "top1": 0.5}
    del progress["data"]
    np.savez(path, progress=np.frombuffer(json.dumps(progress).encode(), np.uint8), **content)
    assert main(["train", "--config", str(trained_run / "config.yaml"), f"train.run={run}"]) == 0
    assert_same_end(trained_run, run)
    assert rows(run) == rows(trained_run)
