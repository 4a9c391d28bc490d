"""``keras-stss robustness``: relative accuracies by hand, tables, files and curves, and nothing scored twice."""

import csv
import json
import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure
from untrained import write_runs

from keras_stss.cli import main
from keras_stss.config import parse_config
from keras_stss.data.annotations import read_annotations
from keras_stss.data.corruptions import corrupt
from keras_stss.evaluation.evaluate import Scorer
from keras_stss.evaluation.robustness import draw_robustness, figures_of, robustness_lines, with_means
from keras_stss.evaluation.scores import Scores


def scores_of(said, truth):
    logits = 5 * np.eye(3, dtype=np.float32)[said]
    names = np.array([f"c{number}" for number in range(len(said))])
    return Scores(names, np.arange(len(said)), np.asarray(truth), logits, {}, {})


def a_run(name, clean, **corruptions):
    truth = [0, 0, 1, 1, 2, 2]
    base = figures_of(scores_of(clean, truth), 3)
    found = {
        corruption: [{"severity": n, **figures_of(scores_of(said, truth), 3, base)} for n, said in rows.items()]
        for corruption, rows in corruptions.items()
    }
    return with_means({"run": name, "clean": base, "corruptions": found})


def test_relative_accuracy_by_hand(tmp_path):
    """Four of six right on clean clips; three and one of six on damaged ones."""
    run = a_run(
        "a", [0, 0, 1, 1, 0, 0], fog={1: [0, 0, 1, 0, 0, 0], 3: [0, 1, 0, 0, 0, 0]}, jpeg={1: [0, 0, 1, 1, 0, 0]}
    )
    assert run["clean"]["top1"] == pytest.approx(4 / 6) and run["clean"]["relative"] == 1.0
    assert [row["relative"] for row in run["corruptions"]["fog"]] == pytest.approx([3 / 4, 1 / 4])
    assert run["relative"] == pytest.approx({"fog": 0.5, "jpeg": 1.0}) and run["mean_relative"] == pytest.approx(0.75)
    low, high = (run["corruptions"]["fog"][0][key] for key in ("low", "high"))
    assert 0 <= low < 0.5 < high <= 1
    never = a_run("b", [1, 1, 0, 0, 0, 0], fog={1: [0, 0, 1, 1, 2, 2]}, jpeg={})
    assert never["corruptions"]["fog"][0]["relative"] is None and never["mean_relative"] is None
    lines = list(robustness_lines([run, never]))
    assert lines[1].split() == ["corruption", "run", "1", "3", "mean"]
    assert lines[4].split() == ["fog", "a", "75.0%", "25.0%", "50.0%"] and lines[5].split() == ["fog", "b", "-", "-"]
    draw_robustness(tmp_path / "curves.png", [run, never])
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_the_legend_names_all_runs_as_they_are_called(tmp_path, monkeypatch, recwarn):
    """Matplotlib passes over names that begin with _, and takes what stands between dollars for a formula."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    names = ["_new", "cost $5 and $6", "何か"]
    draw_robustness(tmp_path / "c.png", [a_run(each, [0, 0, 1, 1, 2, 2], fog={1: [0] * 6}) for each in names])
    texts = drawn[0].legends[0].get_texts()
    assert [text.get_text() for text in texts] == [f"100.0% on clean clips: {name}" for name in names]
    assert not any(text.get_parse_math() for text in texts)
    monkeypatch.undo()
    draw_robustness(tmp_path / "c.png", [a_run("何か", [0] * 6, fog={1: [0] * 6})])
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


@pytest.fixture(scope="module")
def runs(clip_set, tmp_path_factory):
    return write_runs(clip_set, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def counted(monkeypatch):
    calls, score = [], Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda *args, **options: calls.append(1) or score(*args, **options))
    return calls


CHOSEN = ["--corruptions", "selfy,reversed_frames,gaussian_noise", "--severities", "1,6"]


def test_runs_on_damaged_clips(runs, clip_set, tmp_path, capsys, counted):
    """The figures are those of a model that is given the damaged clips; a second call scores what is missing only."""
    two = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    arguments = ["robustness", *map(str, two), *CHOSEN, "--out", str(tmp_path / "out")]
    assert main([*arguments, "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert json.loads((tmp_path / "out/robustness.json").read_text()) == result
    levels = {name: [row["severity"] for row in rows] for name, rows in result["runs"][0]["corruptions"].items()}
    assert levels == {
        "center_occlusion": [1, 6], "center_motion_blur": [1, 6], "gaussian_noise": [1], "reversed_frames": [1],
    }  # fmt: skip
    assert len(counted) == 2 * (1 + 6) and f"{two[1]}, gaussian_noise 1: top-1 " in said.err
    with open(tmp_path / "out/robustness.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14 and {row["severity"] for row in rows if row["corruption"] == "clean"} == {"0"}

    model_sees = seen_by(two[0], clip_set)
    for name, severity in (("center_occlusion", 6), ("reversed_frames", 1), ("gaussian_noise", 1)):
        saved = Scores.load(two[0] / f"scores/robustness/1x1-{name}-{severity}.npz")
        assert saved.depends["change"][:2] == [name, severity]
        np.testing.assert_allclose(saved.logits, model_sees(name, severity, saved.clips), rtol=1e-3, atol=1e-4)

    lost = two[1] / "scores/robustness/1x1-gaussian_noise-1.npz"
    kept = Scores.load(lost)
    lost.unlink()
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert len(counted) == 15 and (Scores.load(lost).logits == kept.logits).all()
    assert out.splitlines()[1].split() == ["corruption", "run", "1", "6", "mean"] and out.count("reversed_frames") == 2
    assert main([*arguments, "--seed", "1", "--corruptions", "gaussian_noise"]) == 0
    assert len(counted) == 17 and (Scores.load(lost).logits != kept.logits).any()


def seen_by(run, clip_set):
    """Function of a corruption, a severity and names of clips: logits of the clips, damaged one by one."""
    import zlib

    from conftest import tiny_values

    from keras_stss.data.pipeline import read_clip
    from keras_stss.models import load_model

    config, model = parse_config(tiny_values(clip_set, run)), load_model(run)
    paths = {clip.id: clip.path for clip in read_annotations(config.data).validation}

    def logits(name, severity, clips):
        frames = []
        for clip in clips.tolist():
            rng = np.random.default_rng((0, zlib.crc32(clip.encode()), 0))
            frames.append(corrupt(read_clip(paths[clip], "video", config.data), name, severity, rng))
        return model(np.stack(frames), training=False).numpy()

    return logits


def test_a_clip_that_cannot_be_read_is_told_once_and_left_out_everywhere(runs, clip_set, tmp_path, capsys, caplog):
    run, root = shutil.copytree(runs[0], tmp_path / "run"), shutil.copytree(clip_set, tmp_path / "set")
    (root / "20.mp4").write_bytes(b"")
    arguments = ["robustness", str(run), f"data.root={root}", "--corruptions", "selfy", "--severities", "1,2", "--json"]
    assert main(arguments) == 0
    (figures,) = json.loads(capsys.readouterr().out)["runs"]
    assert caplog.text.count("unreadable clip left out") == 1
    told = [figures["clean"], *(row for rows in figures["corruptions"].values() for row in rows)]
    assert [row["clips"] for row in told] == [6] * 5
    (root / "20.mp4").write_bytes((root / "21.mp4").read_bytes())
    assert main([*arguments, "--seed", "1"]) == 0  # clean scores as they are kept: the others are of the same clips
    (figures,) = json.loads(capsys.readouterr().out)["runs"]
    assert {row["clips"] for rows in figures["corruptions"].values() for row in rows} == {6}


def test_refusals(runs, capsys):
    def refused(text, *arguments):
        assert main(["robustness", str(runs[0]), *arguments]) == 2
        assert text in capsys.readouterr().err

    refused("no corruption, nor a group of them, is called snow. There are:", "--corruptions", "snow,fog")
    refused("--severities wants whole numbers from 1", "--severities", "0,2")
    refused("--severities wants whole numbers from 1", "--severities", "high")
    refused("no corruption has a severity of 6", "--severities", "6", "--corruptions", "fog")
    refused("--seed must not be negative", "--seed", "-1")
    refused("robustness changes only data.… and evaluate.… keys", "model.width=3")
