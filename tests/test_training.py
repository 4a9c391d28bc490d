"""Training through the command line: what a run leaves behind, and how it ends when something is wrong."""

import json
import math
import shutil

import numpy as np
import pytest
import tensorflow as tf

from keras_stss.cli import main
from keras_stss.config import load_config, parse_config
from keras_stss.models import load_model
from keras_stss.training import loop
from keras_stss.training.loop import TrainingDiverged


def train(path, *overrides):
    return main(["train", "--config", str(path), *overrides])


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(capsys, code, *parts):
    """The message of a command that must have ended with exit code 2 and no traceback."""
    message = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in message
    for part in parts:
        assert part in message
    return message


@pytest.fixture
def own_set(clip_set, tmp_path):
    """A copy of the shared set that a test may damage."""
    return shutil.copytree(clip_set, tmp_path / "set")


# --- what a run leaves behind -----------------------------------------------------------------------------------------


def test_a_run_directory_holds_all_that_is_promised(trained_run):
    names = {path.name for path in trained_run.iterdir()}
    wanted = {"config.yaml", "labels.json", "metrics.jsonl", "tensorboard", "checkpoints", "best.keras", "log.txt"}
    wanted.add("summary.png")
    assert wanted == names - {"evaluation.json"}
    assert json.loads((trained_run / "labels.json").read_text()) == ["blue square", "green square", "red square"]
    assert "18 training and 7 validation clips, 3 classes" in (trained_run / "log.txt").read_text()


def test_a_line_of_metrics_an_epoch(trained_run):
    lines = rows(trained_run)
    assert [row["epoch"] for row in lines] == [1, 2, 3, 4]
    assert [row["step"] for row in lines] == [5, 10, 15, 20]  # 18 clips in batches of 4
    for row in lines:
        assert row["val_clips"] == 7
        assert row["unreadable"] == row["val_unreadable"] == 0
        assert 0 <= row["train_top1"] <= 1
        assert row["clips_per_second"] > 0
        assert 0 < row["wait_share"] < 1 and row["board_share"] > 0
        assert all(math.isfinite(value) for value in row.values())
    assert lines[1]["board_share"] > lines[0]["board_share"]  # pictures, and no compilation of a step beside them
    tops = [row["val_top1"] for row in lines]
    assert lines[-1]["best_epoch"] == tops.index(max(tops)) + 1


def test_the_last_checkpoints_are_kept(trained_run):
    assert sorted(path.name for path in (trained_run / "checkpoints").iterdir()) == [
        "step-00000018.npz",  # every 3 steps and after each epoch
        "step-00000020.npz",
    ]


def test_tensorboard_gets_scalars(trained_run):
    found = {}
    for path in (trained_run / "tensorboard").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                number = value.simple_value if value.HasField("simple_value") else tf.make_ndarray(value.tensor)
                found.setdefault(value.tag, []).append((event.step, number))
    assert [step for step, _ in found["train/loss"]] == list(range(1, 21))
    assert found["train/learning_rate"][0][1] == pytest.approx(0.02)
    assert all(norm > 0 for _, norm in found["train/gradient_norm"])
    by_epoch = {row["step"]: row["val_top1"] for row in rows(trained_run)}
    assert dict(found["epoch/val_top1"]) == pytest.approx(by_epoch)
    pictures = {"train/clips": [10, 20], "classes/accuracy": [10, 20]}  # of every second epoch
    assert {tag: [step for step, _ in found[tag]] for tag in pictures} == pictures


def test_the_colours_are_learnt(trained_run):
    first, *_, last = rows(trained_run)
    assert last["train_loss"] < 0.75 * first["train_loss"]
    assert last["train_top1"] > first["train_top1"]


def test_the_best_model_is_that_of_the_best_epoch(trained_run):
    last = rows(trained_run)[-1]
    best = load_model(trained_run)
    assert best.input_shape == (None, None, None, None, 3)
    with np.load(trained_run / "checkpoints" / "step-00000020.npz") as file:
        latest = [file[f"{number:04d}"] for number in range(len(best.weights))]
    same = all(np.array_equal(weight, array) for weight, array in zip(best.get_weights(), latest))
    assert same == (last["best_epoch"] == 4)


# --- the same folder again --------------------------------------------------------------------------------------------


def test_a_finished_run_does_nothing_more(trained_run, capsys, caplog):
    before = {path: data for path, data in contents(trained_run).items() if path.name != "log.txt"}
    assert train(trained_run / "config.yaml") == 0
    after = {path: data for path, data in contents(trained_run).items() if path.name != "log.txt"}
    assert after == before
    assert "after 4 epochs" in capsys.readouterr().out
    assert "step 20 of 20" in caplog.text


def test_other_settings_are_refused_by_name(trained_run, capsys):
    before = contents(trained_run)
    overrides = ("train.epochs=9", "model.insert.res3=selfy", "data.flip=false", "data.workers=7")
    message = refused(capsys, train(trained_run / "config.yaml", *overrides), "other settings", str(trained_run))
    assert "train.epochs: 4 there, 9 now" in message
    assert "data.flip: True there, False now" in message
    assert "model.insert.res3: None there" in message
    assert "data.workers" not in message  # it may change
    assert contents(trained_run) == before


def test_other_labels_are_refused(trained_run, own_set, tmp_path, capsys):
    run = shutil.copytree(trained_run, tmp_path / "copy")
    table = own_set / "clips.csv"
    table.write_text(table.read_text().replace("red square", "pink square"))
    refused(capsys, train(run / "config.yaml", f"data.root={own_set}", f"train.run={run}"), "other class labels")


def test_a_folder_with_other_files_is_refused(recipe, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    refused(capsys, train(recipe()), "holds files but no run", "train.run=")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_run_is_refused(recipe, tmp_path, capsys):
    (tmp_path / "run").write_text("precious")
    refused(capsys, train(recipe()), str(tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "precious"


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_stays_finite(recipe, tmp_path, precision):
    assert train(recipe(**{"train.precision": precision, "train.epochs": 1})) == 0
    (row,) = rows(tmp_path / "run")
    assert all(math.isfinite(value) for value in row.values())
    with np.load(tmp_path / "run" / "checkpoints" / "step-00000005.npz") as file:
        arrays = [file[name] for name in file.files if name != "progress"]
    assert all(np.isfinite(array).all() for array in arrays)
    assert not any(array.dtype == np.float16 for array in arrays)  # the weights themselves stay float32
    layers = load_model(tmp_path / "run").layers
    assert layers[-1].compute_dtype == "float32"  # the logits
    assert any(layer.compute_dtype == precision.removeprefix("mixed_") for layer in layers)


# --- a start from another run -----------------------------------------------------------------------------------------


def test_a_run_starts_from_another_with_other_classes(trained_run, clip_set, own_set, tmp_path, recipe, monkeypatch):
    table = own_set / "clips.csv"
    table.write_text(table.read_text().replace("green square", "blue square"))
    started = {}

    def look(training, progress):
        started.update({variable.path: variable.numpy() for variable in training.model.variables})
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Training, "_run_epochs", look)
    path = recipe(own_set, **{"model.init": str(trained_run)})
    assert train(path) == 130
    source = {variable.path: variable.numpy() for variable in load_model(trained_run).variables}
    assert started.keys() == source.keys()
    for name, value in started.items():
        if name.startswith("logits/"):
            assert value.shape[-1] == 2
        else:
            np.testing.assert_array_equal(value, source[name], err_msg=name)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"started from {trained_run}" in log
    assert "2 kept: logits/kernel, logits/bias" in log


def test_a_start_from_nowhere_is_told_and_can_be_mended(recipe, trained_run, tmp_path, capsys, monkeypatch):
    path = recipe(**{"model.init": str(tmp_path / "typo")})
    refused(capsys, train(path), "no run directory or .keras file at")
    monkeypatch.setattr(loop.Training, "_run_epochs", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert train(path, f"model.init={trained_run}") == 130  # the folder is not taken by a run that never began


# --- unreadable clips -------------------------------------------------------------------------------------------------


def damage(root):
    """{number: reason} of four training clips and one validation clip that are spoilt in different ways."""
    whole = (root / "3.mp4").read_bytes()
    (root / "1.mp4").write_bytes(b"")
    (root / "3.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "5.mp4").unlink()
    (root / "8.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    (root / "20.mp4").write_bytes(b"")
    return {1: "zero bytes", 3: "", 5: "no such file", 8: "not a video"}


def test_unreadable_clips_are_counted_logged_and_left_out(recipe, own_set, tmp_path, caplog):
    reasons = damage(own_set)
    assert train(recipe(own_set, **{"data.max_unreadable": 0.25})) == 0
    for row in rows(tmp_path / "run"):
        assert row["unreadable"] == 4
        assert row["val_unreadable"] == 1
        assert row["val_clips"] == 6
    log = (tmp_path / "run" / "log.txt").read_text()
    for number, reason in reasons.items():
        lines = [line for line in log.splitlines() if f"{own_set / str(number)}.mp4: " in line]
        assert len(lines) == 1, number  # once, not every epoch
        assert reason in lines[0]
        assert lines[0].rpartition(": ")[2]
    assert f"{own_set / '20.mp4'}: empty file (zero bytes)" in log


def test_too_many_unreadable_clips_end_the_run(recipe, own_set, tmp_path, capsys):
    damage(own_set)
    code = train(recipe(own_set, **{"train.epochs": 1}))
    message = refused(capsys, code, "clips cannot be read", "data.max_unreadable=0.2 allows 20.0%")
    assert str(own_set) in message
    assert "keras-stss: " in message
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()
    # What may be allowed later goes on in the same folder.
    assert train(tmp_path / "tiny.yaml", "data.max_unreadable=0.25") == 0


def test_a_set_without_any_readable_clip_ends_the_run(recipe, own_set, capsys):
    for path in own_set.glob("*.mp4"):
        path.write_bytes(b"")
    refused(capsys, train(recipe(own_set, **{"data.max_unreadable": 1.0})), "clips cannot be read")


# --- divergence -------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_run(recipe, tmp_path, capsys):
    path = recipe(**{"train.learning_rate": 1e30, "train.checkpoint_steps": 1, "train.epochs": 3})
    message = refused(capsys, train(path), "at step", "learning rate 1e+30", "A lower train.learning_rate")
    files = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert files
    assert f"The last good checkpoint is {files[-1]}." in message
    for file in files:
        with np.load(file) as arrays:
            assert all(np.isfinite(arrays[name]).all() for name in arrays.files)


def test_a_half_precision_run_that_never_recovers_ends(recipe, capsys, monkeypatch):
    monkeypatch.setattr(loop, "PATIENCE", 4)
    path = recipe(**{"train.learning_rate": 1e30, "train.precision": "mixed_float16", "train.epochs": 3})
    refused(capsys, train(path), "at step", "learning rate 1e+30")


def check(precision, bad_steps=0, **changes):
    """The verdict on one step, without a model."""
    values = {"loss": 1.0, "updated": True, **changes}
    training = object.__new__(loop.Training)
    training.config = parse_config({"data": {"format": "something_v2", "root": "x"}, "train": {"precision": precision}})
    training.bad_steps = bad_steps
    training.checkpoints = type("None yet", (), {"files": lambda self: []})()
    training._check(8, values["loss"], values["updated"], 0.01)
    return training.bad_steps


def test_half_precision_may_overflow_for_a_while():
    assert check("mixed_float16", updated=False) == 1
    assert check("mixed_float16", bad_steps=3, loss=math.inf) == 4
    assert check("mixed_float16", bad_steps=3) == 0
    with pytest.raises(TrainingDiverged, match=r"the gradient is not finite at step 8 .*No checkpoint"):
        check("mixed_float16", bad_steps=loop.PATIENCE - 1, updated=False)
    for precision in ("float32", "mixed_bfloat16"):
        with pytest.raises(TrainingDiverged, match="the loss is nan"):
            check(precision, loss=math.nan)
        with pytest.raises(TrainingDiverged, match="the gradient is not finite"):
            check(precision, updated=False)


# --- data sets --------------------------------------------------------------------------------------------------------


def test_a_missing_data_set_is_told_in_a_few_lines(recipe, tmp_path, capsys):
    message = refused(capsys, train(recipe(tmp_path / "nowhere")), "data set not found", str(tmp_path / "nowhere"))
    assert len(message.splitlines()) <= 10
    assert not (tmp_path / "run").exists()


def test_each_group_is_held_out_in_turn(recipe, tmp_path, capsys):
    assert train(recipe(**{"data.holdout": "each", "train.epochs": 1})) == 0
    out = capsys.readouterr().out
    last = {}
    for group, clips in (("A", 13), ("B", 12)):
        (run,) = (tmp_path / "run").glob(f"holdout-*{group}")
        (last[group],) = rows(run)
        assert last[group]["val_clips"] == clips
        assert (run / "best.keras").is_file()
        line = next(line for line in out.splitlines() if line.startswith(f"{group} "))
        assert line.split()[1:3] == [str(clips), f"{last[group]['val_top1']:.1%}"]
    total = next(line for line in out.splitlines() if line.startswith("all "))
    right = sum(row["val_top1"] * row["val_clips"] for row in last.values())
    assert total.split()[1:] == ["25", f"{right / 25:.1%}"]


def test_clips_that_are_held_out_do_not_choose_the_epoch(recipe, clip_set, tmp_path, monkeypatch):
    """… and the run knows its data from any working directory, whatever way its root was named."""
    monkeypatch.chdir(clip_set.parent)
    assert train(recipe(**{"data.root": clip_set.name, "data.holdout": "A", "train.epochs": 3})) == 0
    assert [row["best_epoch"] for row in rows(tmp_path / "run")] == [1, 2, 3]
    kept = load_config(tmp_path / "run" / "config.yaml")
    assert kept.data.root == str(clip_set)


def test_groups_never_share_a_folder(monkeypatch, tmp_path):
    folders = []
    monkeypatch.setattr(loop.keras.backend, "clear_session", lambda: None)
    monkeypatch.setattr(loop, "groups", lambda data: ["a b", "a/b", "a_b", "..", "ä", "ö"])
    monkeypatch.setattr(loop, "_train_one", lambda config, folder, *_: folders.append(folder) or {})
    data = {"format": "clips", "root": "x", "annotations": "clips.csv", "holdout": "each"}
    loop.train(parse_config({"data": data, "train": {"run": str(tmp_path)}}), "name")
    assert len(set(folders)) == 6
    assert {folder.parent for folder in folders} == {tmp_path}


def test_a_group_that_is_not_there_is_told(recipe, tmp_path, capsys):
    refused(capsys, train(recipe(**{"data.holdout": "C"})), "no group 'C'", "There are: A, B")
    assert not (tmp_path / "run").exists()


def test_a_run_is_named_after_its_config(clip_set, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "_train_one", lambda config, folder, *_: seen.append(folder) or {})
    config = parse_config({"data": {"format": "clips", "root": str(clip_set), "annotations": "clips.csv"}})
    loop.train(config, "demo")
    assert [str(folder) for folder in seen] == ["runs/demo"]
