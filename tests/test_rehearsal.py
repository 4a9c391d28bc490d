"""A rehearsal runs all that the run will run, on the config as it is, says what it did, and leaves nothing."""

import io
import json
import os
import signal
from types import SimpleNamespace

import pytest
import tensorflow as tf

from keras_stss.config import ConfigError, load_config
from keras_stss.data.annotations.data_set import DataSet
from keras_stss.export import export_run
from keras_stss.training import rehearsal
from keras_stss.training.workers.preempt import Preempted


@pytest.fixture
def rehearse(recipe, tmp_path):
    """Function (export, **changes) → (report, text)."""

    def call(export=export_run, **changes):
        text = io.StringIO()
        config = load_config(str(recipe(**changes)))
        return rehearsal.rehearse(config, "tiny", export, text), text.getvalue()

    return call


def test_two_steps_of_everything(rehearse, tmp_path):
    """Of Twins Training with groups, average and warm-up; the run's folder stays free, and the scratch one goes."""
    seen = {}

    def export(run_folder, folder):
        seen["epochs"] = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
        seen["config"] = load_config(str(run_folder / "config.yaml"))
        seen["files"] = {path.name for path in run_folder.iterdir()}
        return export_run(run_folder, folder)

    report, text = rehearse(
        export,
        **{
            "data.augment.grayscale": 0.5,
            "train.twins": {},
            "train.resume": "never",
            "train.ema": 0.9,
            "train.rates": {"bias": 2.0, "head_bias": 4.0},
            "train.schedule": {"kind": "cosine", "warmup_epochs": 2},
            "train.epochs": 50,
            "evaluate.every": 7,
            "evaluate.batch_size": 2,
        },
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]
    assert [(row["epoch"], row["step"], row["val_clips"]) for row in seen["epochs"]] == [(1, 2, 4), (2, 4, 4)]
    assert {"config.yaml", "labels.json", "best.keras", "checkpoints", "tensorboard", "log.txt"} <= seen["files"]
    # The recipe's own figures: 2 of 50 epochs, of steps of 4 clips in two views, with the rates of the warm-up.
    kept = seen["config"]
    assert (kept.train.epochs, kept.train.batch_size, kept.data.frames, kept.data.crop) == (50, 4, 4, 32)
    assert [row["learning_rate"] for row in seen["epochs"]] == pytest.approx([0.025, 0.05])
    assert report["clips"] == {"train": {"there": 18, "taken": 8}, "validation": {"there": 7, "taken": 4}}
    assert report["step"] == {
        **{"clips": 4, "views": 2, "frames": 4, "pixels": 32, "accumulate": 1},
        **{"precision": "float32", "devices": 1, "xla": False},
    }
    assert len(report["steps"]) == 4 and all(step["seconds"] > 0 and step["norm"] > 0 for step in report["steps"])
    assert len({step["loss"] for step in report["steps"]}) == 4
    groups = {group["name"]: group for group in report["groups"]}
    assert groups["head_bias"] == {"name": "head_bias", "tensors": 1, "rate": 4.0, "decay": 0.0}
    assert groups["kernel"]["decay"] == 5e-4 and groups["kernel"]["tensors"] > 5
    assert report["memory"]["of the machine's memory"] > 1e8 and report["checkpoint"] > 1e4 and report["export"] > 1e4
    assert report["hours"] * 3600 == pytest.approx(250 * sum(report["steps"][1][key] for key in ("seconds", "waited")))
    for words in ("18 training and 7 validation clips of 3 classes", "cut       to 8 and 4", "views 2", "head_bias",
                  "random weights", "250 such steps", "from step 2 to 4", "are free"):  # fmt: skip
        assert words in text, words


class NoMemory:
    """A training whose first step does not fit."""

    def __init__(self, *_, **__):
        self.step = self.model = None

    def go(self):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[512,56,56,256]")


def test_what_goes_wrong_is_told_and_leaves_nothing(rehearse, tmp_path, monkeypatch):
    """A step too large, a run that begins anew, an export that fails, a signal. A run that is there is not touched."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("kept")
    monkeypatch.setattr(rehearsal._Rehearsal, "_tell_model", lambda *_: None)
    monkeypatch.setattr(rehearsal, "Training", NoMemory)
    with pytest.raises(ConfigError, match=r"a step of 4 clips does not fit .*shape.512.* train.accumulate=2 "):
        rehearse()

    def pretend(self, until):
        self.report["steps"] += [{"loss": 1.0, "norm": 1.0, "seconds": 1.0, "waited": 0.0}] * until
        return until if self.report.get("anew") else rehearsal.STEPS

    def refuse(run_folder, folder):
        raise RuntimeError("the SavedModel differs")

    monkeypatch.setattr(rehearsal._Rehearsal, "_train", pretend)
    monkeypatch.setattr(rehearsal._Rehearsal, "_tell_files", lambda *_: None)
    with pytest.raises(RuntimeError, match="the SavedModel differs"):
        rehearse(refuse)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="nothing was kept"):
        rehearse(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setattr(rehearsal._Rehearsal, "_tell_files", lambda self: self.report.update(anew=True))
    with pytest.raises(rehearsal.RehearsalFailed, match="on from its checkpoint for 2 steps, and made 4"):
        rehearse(refuse)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "run", "tiny.yaml"]


def test_lists_are_cut_evenly():
    clips = [SimpleNamespace(name=name, label=name % 4) for name in range(1000)]  # classes that take turns, as cards do
    cut = rehearsal._cut(DataSet(clips, clips[:3], ["a"]), 8, 8)
    assert [(clip.label, clip.name) for clip in cut.train] == [
        (label, 4 * number + label) for label in range(4) for number in (0, 125)
    ]
    assert cut.validation == clips[:3]
