"""The commands: their figures as JSON, and exit code 2 with one clear message for what the user can mend."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from keras_stss.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent


def refused(capsys, arguments, *parts):
    """The message of a command that must end with exit code 2 and no traceback."""
    code = main([str(argument) for argument in arguments])
    message = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in message
    assert message.startswith("keras-stss: ")
    for part in parts:
        assert part in message
    return message


@pytest.fixture
def run(trained_run, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(trained_run, tmp_path / "run")


# --- help and usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [[], ["train"], ["prepare"], ["prepare", "synthetic"], ["evaluate"], ["robustness"], ["predict"], ["export"]],
)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: {' '.join(['keras-stss', *command])}")
    assert len(out.splitlines()) > 5


@pytest.mark.parametrize(
    "command",
    [[], ["fly"], ["train"], ["evaluate"], ["predict", "run"], ["prepare"], ["prepare", "kinetics"], ["export", "run"]],
)
def test_wrong_usage_ends_with_code_2(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("keras-stss") and "--help" in said


def test_train_py_is_the_same_door_and_a_bad_config_fails_at_once(tmp_path):
    (tmp_path / "bad.yaml").write_text("data: {format: clips, root: x, annotations: y}\ntrain: {epoch: 3}\n")
    started = "import sys, runpy; sys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    started += "except SystemExit as end: print(end.code, [n for n in ('tensorflow', 'keras') if n in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", started, REPOSITORY / "train.py", "--config", "bad.yaml", "evaluate.evry=1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "2 []\n", result.stderr
    assert result.stderr.splitlines() == [
        "keras-stss: bad.yaml: unknown key train.epoch. Did you mean epochs? "
        + result.stderr.partition("epochs? ")[2].splitlines()[0],
        result.stderr.splitlines()[1],
    ]
    assert "bad.yaml: unknown key evaluate.evry. Did you mean every?" in result.stderr


# --- evaluate ---------------------------------------------------------------------------------------------------------


def best_row(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return rows[rows[-1]["best_epoch"] - 1]


def test_evaluate_gives_the_figures_of_the_best_epoch(run, capsys):
    assert main(["evaluate", str(run), "--json"]) == 0
    out = capsys.readouterr().out
    figures = json.loads(out)
    assert len(out.splitlines()) == 1
    assert figures.keys() == {"top1", "top5", "mean_class", "loss", "clips", "unreadable"}
    row = best_row(run)
    for key in ("top1", "top5", "mean_class", "clips"):
        assert figures[key] == row[f"val_{key}"]
    assert figures["loss"] == pytest.approx(row["val_loss"], rel=1e-4)
    assert json.loads((run / "evaluation.json").read_text()) == figures


def test_evaluate_speaks_to_people(run, clip_set, tmp_path, capsys):
    root = shutil.copytree(clip_set, tmp_path / "moved")
    (root / "20.mp4").write_bytes(b"")
    overrides = [f"data.root={root}", "data.max_unreadable=0.5", "evaluate.batch_size=5"]
    assert main(["evaluate", str(run), *overrides]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("top-1 ")
    assert lines[0].endswith("on 6 clips")
    assert lines[1] == f"left out: {root / '20.mp4'}: empty file (zero bytes)"


def test_evaluate_refuses_what_it_cannot_use(run, clip_set, tmp_path, capsys):
    refused(capsys, ["evaluate", tmp_path / "none"], "is not a run directory")
    refused(capsys, ["evaluate", clip_set / "clips.csv"], "is not a run directory")
    refused(capsys, ["evaluate", clip_set], "is not a run directory")
    refused(capsys, ["evaluate", run, "train.epochs=3"], "changes only data.… and evaluate.… keys")
    refused(capsys, ["evaluate", run, "evaluate.batchsize=3"], "Did you mean batch_size?")
    refused(capsys, ["evaluate", run, "evaluate.batch_size"], "must read key.path=value")
    refused(capsys, ["evaluate", run, f"data.root={tmp_path / 'gone'}"], "data set not found")
    assert not (run / "evaluation.json").exists()


def test_evaluate_refuses_other_labels(run, clip_set, tmp_path, capsys):
    root = shutil.copytree(clip_set, tmp_path / "other")
    table = root / "clips.csv"
    table.write_text(table.read_text().replace("red square", "blue square"))
    refused(capsys, ["evaluate", run, f"data.root={root}"], "2 labels", "trained on (3)")


def test_a_run_without_a_whole_model_is_refused(run, clip_set, capsys):
    content = (run / "best.keras").read_bytes()
    (run / "best.keras").write_bytes(content[: len(content) // 2])
    refused(capsys, ["evaluate", run], "cannot be loaded as a Keras model")
    (run / "best.keras").unlink()
    refused(capsys, ["predict", run, clip_set / "1.mp4"], "holds no best.keras")
    (run / "config.yaml").write_text("data: [")
    refused(capsys, ["evaluate", run], "is not valid YAML")


# --- predict ----------------------------------------------------------------------------------------------------------


def test_predict_ranks_and_goes_on_after_a_bad_file(trained_run, clip_set, tmp_path, capsys):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "bare").mkdir()
    files = [clip_set / "1.mp4", tmp_path / "empty.mp4", tmp_path / "none.mp4", tmp_path / "bare", clip_set / "2.mp4"]
    assert main(["predict", str(trained_run), *map(str, files), "--json"]) == 2
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["file"] for line in lines] == [str(path) for path in files]
    for line in (lines[0], lines[4]):
        shares = [entry["probability"] for entry in line["top"]]
        assert {entry["label"] for entry in line["top"]} == {"blue square", "green square", "red square"}
        assert sum(shares) == pytest.approx(1.0)
        assert shares == sorted(shares, reverse=True)
    assert [line["error"] for line in lines[1:3]] == ["empty file (zero bytes)", "no such file"]
    assert "a folder without frames" in lines[3]["error"]
    assert len(captured.err.splitlines()) == 3
    assert f"{tmp_path / 'none.mp4'}: no such file" in captured.err


def test_predict_reads_a_folder_of_frames_as_the_video(trained_run, clip_set, tmp_path, capsys):
    import tensorflow as tf

    from keras_stss.data.decode import read_frames

    frames = read_frames(str(clip_set / "2.mp4"), "video", lambda count: list(range(count)))
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, image in enumerate(frames, 1):
        (folder / f"{number:05}.png").write_bytes(tf.io.encode_png(image).numpy())
    assert main(["predict", str(trained_run), str(clip_set / "2.mp4"), str(folder), "--json", "--top", "2"]) == 0
    video, pictures = (json.loads(line)["top"] for line in capsys.readouterr().out.splitlines())
    assert len(video) == 2
    assert pictures == [{**entry, "probability": pytest.approx(entry["probability"])} for entry in video]


def test_predict_speaks_to_people(trained_run, clip_set, capsys):
    assert main(["predict", str(trained_run), str(clip_set / "2.mp4"), "--top", "1"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == str(clip_set / "2.mp4")
    assert second.strip().endswith(" square")
    assert "%" in second


def test_predict_refuses_what_is_no_run(clip_set, tmp_path, capsys):
    refused(capsys, ["predict", tmp_path / "none", clip_set / "1.mp4"], "is not a run directory")
    refused(capsys, ["predict", clip_set / "1.mp4", clip_set / "1.mp4"], "is not a run directory")


# --- export and prepare -----------------------------------------------------------------------------------------------


def test_export_refuses_what_is_no_run(tmp_path, capsys):
    refused(capsys, ["export", tmp_path / "none", tmp_path / "saved"], "none")
    assert not (tmp_path / "saved").exists()


def test_prepare_writes_a_set_that_training_reads(tmp_path, capsys):
    root = tmp_path / "synthetic"
    command = ["prepare", "synthetic", str(root), "--train-per-class", "1", "--validation-per-class", "1"]
    assert main([*command, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["root"] == str(root)
    assert summary["train"] == summary["validation"] == summary["classes"] == 12
    assert summary["written"] == 24

    from keras_stss.config import parse_config
    from keras_stss.data.annotations import read_annotations

    data_set = read_annotations(parse_config({"data": {"format": "something_v2", "root": str(root)}}).data)
    assert len(data_set.train) == len(data_set.validation) == len(data_set.labels) == 12
    assert all(Path(clip.path).is_file() for clip in [*data_set.train, *data_set.validation])

    assert main(command) == 0  # nothing left to do
    assert f"12 training and 12 validation clips in {root}" in capsys.readouterr().out
    message = refused(capsys, [*command, "--seed", "5"], "root must be a new folder")
    assert str(root) in message


def test_prepare_refuses_numbers_below_the_least(tmp_path, capsys):
    command = ["prepare", "synthetic", tmp_path / "set"]
    refused(capsys, [*command, "--train-per-class", "0"], "train_per_class must be a whole number from 1")
    refused(capsys, [*command, "--seed", "-1"], "seed must be a whole number from 0")
    assert not (tmp_path / "set").exists()


# --- how a command ends -----------------------------------------------------------------------------------------------


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    from keras_stss.cli import train

    def fault(*_):
        raise ValueError("not the user's doing")

    monkeypatch.setattr(train, "load_config", fault)
    with pytest.raises(ValueError, match="not the user's doing"):
        main(["train", "--config", "x"])


def test_ctrl_c_and_a_closed_pipe_end_quietly(monkeypatch, capsys):
    from keras_stss.cli import train

    def raising(error):
        def load(*_):
            raise error

        return load

    monkeypatch.setattr(train, "load_config", raising(KeyboardInterrupt()))
    assert main(["train", "--config", "x"]) == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().err
    monkeypatch.setattr(train, "load_config", raising(BrokenPipeError()))
    assert main(["train", "--config", "x"]) == 0
    monkeypatch.setattr(train, "load_config", raising(OSError(28, "No space left on device", "runs/x")))
    assert main(["train", "--config", "x"]) == 2
    assert capsys.readouterr().err == "keras-stss: [Errno 28] No space left on device: 'runs/x'\n"


def test_overrides_may_stand_anywhere(run, capsys):
    assert main(["evaluate", str(run), "--json", "evaluate.batch_size=3"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] > 0
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(run), "--jsom", "evaluate.batch_size=3"])
    assert stop.value.code == 2
    assert "--jsom" in capsys.readouterr().err
