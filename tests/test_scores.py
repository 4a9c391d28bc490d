"""Scores that are kept, figures of them, ensembles and comparisons of runs: ``keras-stss evaluate``."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_values
from untrained import LABELS, write_runs

from keras_stss.cli import main
from keras_stss.config import parse_config
from keras_stss.data.annotations import Clip, DataError, read_annotations
from keras_stss.evaluation.evaluate import Scorer
from keras_stss.evaluation.figures import all_figures, comparisons
from keras_stss.evaluation.metrics import softmax
from keras_stss.evaluation.protocols import PROTOCOLS
from keras_stss.evaluation.scores import Scores, clip_names, matched, mean_of_models, what_scores_depend_on

# --- figures and sets of scores by hand -------------------------------------------------------------------------------


def scores_of(probabilities, labels, clips=None, listed="x", unreadable=None):
    names = np.asarray(clips or [f"c{number}" for number in range(len(labels))])
    logits = np.log(np.asarray(probabilities, np.float64)).astype(np.float32)
    return Scores(names, np.arange(len(names)), np.asarray(labels), logits, unreadable or {}, {"clips": listed})


def test_all_figures_of_a_small_case():
    """Four clips of three classes: two right, one of class 0 taken for 1 and one of 2 for 1."""
    probabilities = [[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.1, 0.7, 0.2]]
    figures = all_figures(scores_of(probabilities, [0, 0, 1, 2]), ["a", "b", "c"])
    assert figures["top1"] == 0.5 and figures["top5"] == 1.0
    assert figures["mean_class"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert figures["loss"] == pytest.approx(-np.log([0.8, 0.3, 0.8, 0.2]).mean(), rel=1e-6)
    # Four clips at 0.8, 0.6, 0.8 and 0.7, in bins of their own but for the two right ones.
    assert figures["calibration"]["ece"] == pytest.approx((2 * 0.2 + 0.6 + 0.7) / 4, rel=1e-5)
    assert figures["confusion"] == [[0, 0, 1], [0, 1, 1], [1, 1, 1], [2, 1, 1]]
    assert figures["confused"][0] == {"a": "a", "b": "b", "a_as_b": 1, "b_as_a": 0}
    first = {"class": 0, "label": "a", "clips": 2, "right": 1, "accuracy": 0.5, "precision": 1.0}
    assert figures["classes"][0] == first | {"taken_for": "b", "taken_for_clips": 1}
    low, high = figures["intervals"]["top1"]
    assert low == 0.0 and high == 1.0  # one in sixteen draws of four has none right, and one has all
    assert figures["intervals"]["top5"] == [1.0, 1.0]
    assert figures["intervals"]["loss"][0] < figures["loss"] < figures["intervals"]["loss"][1]


def test_an_ensemble_is_the_mean_of_probabilities_on_common_clips():
    first = scores_of([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], [0, 1, 0])
    other = scores_of([[0.6, 0.4], [0.3, 0.7]], [0, 0], ["c2", "c0"], unreadable={"p": "gone"})
    together = mean_of_models([("A", first), ("B", other)])
    assert together.clips.tolist() == ["c0", "c2"] and together.label.tolist() == [0, 0]
    np.testing.assert_allclose(softmax(together.logits), [[0.6, 0.4], [0.55, 0.45]], rtol=1e-5)
    assert together.unreadable == {"p": "gone"}
    (row,) = comparisons([("A", first), ("B", other)])
    assert row["run"] == "B" and row["against"] == "A" and row["clips"] == 2
    assert row["difference"] == pytest.approx(-0.5 + 0.5)  # B: c0 wrong, c2 right; A: c0 right, c2 tied
    assert (row["only_first"], row["only_second"]) == (1, 1)


def test_other_lists_of_clips_are_refused():
    first = scores_of([[0.9, 0.1]] * 3, [0, 1, 0])
    fewer = scores_of([[0.9, 0.1]] * 2, [0, 1], listed="y")
    with pytest.raises(DataError, match="A and B are not tested on the same clips: 1 are in A alone \\(c2\\)"):
        matched(first, fewer, ("A", "B"))
    with pytest.raises(DataError, match="1 have other labels \\(c1\\)"):
        matched(first, scores_of([[0.9, 0.1]] * 3, [0, 0, 0], listed="y"), ("A", "B"))
    with pytest.raises(DataError, match="no clip could be read both in A and in B"):
        matched(first, scores_of([[0.9, 0.1]], [0], ["c9"]), ("A", "B"))


def test_names_of_clips_do_not_tell_where_the_set_lies():
    clips = [
        Clip("v", "/one/v.mp4", 0, "video", start=2.0, end=3.5),
        Clip("v", "/one/v.mp4", 0, "video", frames=(3, 9)),
    ]
    moved = [
        Clip("v", "/two/v.mp4", 0, "video", start=2.0, end=3.5),
        Clip("v", "/two/v.mp4", 0, "video", frames=(3, 9)),
    ]
    assert clip_names(clips) == clip_names(moved) == ["v [2-3.5 s]", "v [frames 3-9]"]
    with pytest.raises(DataError, match="two clips have the name 'v"):
        clip_names([*clips, moved[0]])


def test_a_damaged_file_of_scores_counts_for_nothing(tmp_path, caplog):
    scores, path = scores_of([[0.9, 0.1]], [0]), tmp_path / "s.npz"
    scores.save(path)
    found = Scores.load(path)
    assert found.clips.tolist() == ["c0"] and found.depends == {"clips": "x"} and found.unreadable == {}
    assert (found.logits == scores.logits).all()
    whole = path.read_bytes()
    strange = bytearray(whole)
    strange[whole.index(b"PK\x01\x02") + 10] = 99  # a way to pack that zipfile does not know
    for content in (whole[:100], bytes(strange), b""):
        path.write_bytes(content)
        caplog.clear()
        assert Scores.load(path) is None and "cannot be read" in caplog.text
    assert Scores.load(tmp_path / "none.npz") is None


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(clip_set, tmp_path_factory):
    return write_runs(clip_set, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def two(runs, tmp_path):
    return [shutil.copytree(run, tmp_path / run.name) for run in runs]


def evaluated(capsys, *arguments):
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    said = capsys.readouterr()
    return json.loads(said.out), said.err


@pytest.fixture
def counted(monkeypatch):
    """How many sets of clips were scored."""
    calls, score = [], Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda *args, **options: calls.append(1) or score(*args, **options))
    return calls


def test_nothing_is_computed_twice(two, clip_set, capsys, counted):
    run = two[0]
    figures, said = evaluated(capsys, run, "--protocol", "2x1")
    assert len(counted) == 1 and said == ""
    assert figures["protocol"] == "2x1" and figures["views"] == 2 and figures["clips"] == 7
    assert json.loads((run / "evaluation-2x1.json").read_text()) == figures
    assert not (run / "evaluation.json").exists()
    again, said = evaluated(capsys, run, "--protocol", "2x1")
    assert again == figures and len(counted) == 1
    assert said.startswith(f"scores of 7 clips from {run / 'scores/2x1.npz'}; --again computes them anew")
    evaluated(capsys, run, "--protocol", "2x1", "data.workers=1")  # does not change what is computed
    assert len(counted) == 1
    for arguments in (["--again"], ["data.frames=3"], []):
        evaluated(capsys, run, "--protocol", "2x1", *arguments)
    assert len(counted) == 4  # the last, since the scores of three frames have taken their place
    (run / "best.keras").write_bytes((two[1] / "best.keras").read_bytes())
    other, _ = evaluated(capsys, run, "--protocol", "2x1")
    assert len(counted) == 5 and other["loss"] != figures["loss"]
    (run / "best.keras").unlink()
    assert evaluated(capsys, run, "--protocol", "2x1")[0] == other and len(counted) == 5


def test_scores_are_those_of_the_folder_of_videos(clip_set):
    values = tiny_values(clip_set, "run")["data"]

    def depends(**changes):
        data = parse_config({"data": values | changes}).data
        return what_scores_depend_on("none.keras", [], data, PROTOCOLS["1x1"])

    assert depends(videos="small") != depends() == depends(workers=1) != depends(videos="large")


def test_clips_that_a_model_gives_no_number_for_are_left_out(two, capsys, monkeypatch):
    """As unreadable ones: a line each, and too many are an error."""
    run, score, lost = two[0], Scorer.score, [3]

    def scored(*args, **options):
        index, logits, unreadable = score(*args, **options)
        logits[lost, 0] = np.nan
        return index, logits, unreadable

    monkeypatch.setattr(Scorer, "score", scored)
    figures, _ = evaluated(capsys, run)
    assert figures["clips"] == 6 and list(figures["unreadable"].values()) == [
        "the model's scores of it are not finite (NaN or infinity)"
    ]
    _, said = evaluated(capsys, run)
    assert "scores of 6 clips (1 left out then) from" in said
    for lost[:], text in (([3, 4], "2 of 7 clips cannot be read"), (range(7), "gives no finite score")):
        assert main(["evaluate", str(run), "--again"]) == 2
        assert text in capsys.readouterr().err


def test_figures_that_cannot_be_saved_are_told(two, capsys, caplog):
    """A folder that cannot be written costs the files, not the figures."""
    (two[0] / "scores").write_text("in the way")
    figures, _ = evaluated(capsys, two[0])
    assert figures["clips"] == 7 and f"the scores of {two[0]} are not kept" in caplog.text
    (two[0] / "evaluation-1x1.json").unlink()
    (two[0] / "evaluation-1x1.json").mkdir()
    for runs in (two[:1], two):
        assert main(["evaluate", *map(str, runs)]) == 2
        said = capsys.readouterr()
        assert "top-1" in said.out and "evaluation-1x1.json" in said.err


def test_scores_in_files(two, capsys):
    run = two[0]
    assert main(["evaluate", str(run)]) == 0  # without --protocol: 1x1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("on 7 clips") and lines[2].startswith("1x1: one clip, centre crop")
    config = parse_config(tiny_values(read_root(run), run))
    clips = read_annotations(config.data).validation
    saved = Scores.load(run / "scores/1x1.npz")
    assert saved.clips.tolist() == [clip.id for clip in clips] and saved.label.tolist() == [c.label for c in clips]
    with open(run / "scores/1x1.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, logits, label in zip(rows, saved.logits, saved.label, strict=True):
        probabilities = softmax(logits)
        best = np.argsort(-probabilities)
        assert row["label"] == LABELS[label] and row["predicted"] == row["top1"] == LABELS[best[0]]
        assert row["right"] == str(int(best[0] == label))
        assert [row[f"top{number}"] for number in (1, 2, 3)] == [LABELS[place] for place in best]
        shares = [float(row[f"probability{number}"]) for number in (1, 2, 3)]
        np.testing.assert_allclose(shares, probabilities[best], rtol=1e-4)
    short, full = (json.loads((run / name).read_text()) for name in ("evaluation.json", "evaluation-1x1.json"))
    assert short.items() <= full.items() and short.keys() < full.keys()
    assert any(line.startswith("top-1 ") and "[" in line for line in lines[3:])


def read_root(run):
    return (run / "config.yaml").read_text().split("root: ")[1].split("\n")[0]


def test_several_runs_and_their_ensemble(two, capsys, counted):
    figures, _ = evaluated(capsys, *two, "--protocol", "10x1")
    assert [each["run"] for each in figures["runs"]] == list(map(str, two)) and len(counted) == 2
    saved = [Scores.load(run / "scores/10x1.npz") for run in two]
    mean = np.mean([softmax(each.logits) for each in saved], axis=0)
    label = saved[0].label
    assert figures["ensemble"]["top1"] == pytest.approx(np.mean(mean.argmax(1) == label))
    assert figures["ensemble"]["loss"] == pytest.approx(-np.log(mean[np.arange(7), label]).mean(), rel=1e-4)
    right = [each.logits.argmax(1) == each.label for each in saved]
    (compared,) = figures["comparisons"]
    assert compared["run"] == str(two[1]) and compared["against"] == str(two[0])
    assert compared["difference"] == pytest.approx(right[1].mean() - right[0].mean())
    assert main(["evaluate", *map(str, two), "--protocol", "10x1"]) == 0
    out = capsys.readouterr().out
    assert "all of them (mean of their probabilities)" in out and "top-1 against the first" in out
    assert len(counted) == 2


def test_saved_scores_are_enough(two, clip_set, tmp_path, capsys, caplog):
    """Ensemble and comparison where neither models nor data set are left; what was not scored needs them."""
    root = shutil.copytree(clip_set, tmp_path / "set")
    for run in two:
        config = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(config.replace(str(clip_set), str(root)))
    expected, _ = evaluated(capsys, *two)
    shutil.rmtree(root)
    (two[1] / "best.keras").unlink()
    assert evaluated(capsys, *two)[0] == expected
    assert "without the data set, the scores of" in caplog.text
    assert f"without {two[1] / 'best.keras'} and the data set, the scores of" in caplog.text
    for arguments in ([*two, "--protocol", "2x1"], [two[0], "--again"], [two[0], "data.frames=2"]):
        assert main(["evaluate", *map(str, arguments)]) == 2
        assert f"data set not found: the folder {root}" in capsys.readouterr().err


def test_refusals(two, clip_set, tmp_path, capsys):
    def refused(text, *arguments):
        assert main(["evaluate", *map(str, arguments)]) == 2
        assert text in capsys.readouterr().err

    refused("no protocol '4x4'. There are:\n  1x1", two[0], "--protocol", "4x4")
    refused("evaluate changes only data.… and evaluate.… keys", two[0], "train.epochs=3")
    refused("name a run directory", "data.frames=3")
    refused("--devices must be at least 1", two[0], "--devices", "0")
    (two[1] / "labels.json").write_text(json.dumps(LABELS[::-1]))
    refused("labels are not those that", *two)
    (two[1] / "labels.json").write_text(json.dumps([*LABELS[:2], "a ring"]))
    refused("was trained on (3): it has no 'a ring'", two[1])
    left = shutil.copytree(clip_set, tmp_path / "left")
    table = left / "clips.csv"
    table.write_text(table.read_text().replace("red square", "square from the left"))
    named = ["blue square", "green square", "square from the left"]
    (two[0] / "labels.json").write_text(json.dumps(named))
    refused("1 of 3 labels name a side", two[0], f"data.root={left}", "--protocol", "1x10")


def test_runs_on_other_clips_are_not_compared(two, clip_set, tmp_path, capsys):
    root = shutil.copytree(clip_set, tmp_path / "fewer")
    table = root / "clips.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    config = (two[1] / "config.yaml").read_text()
    (two[1] / "config.yaml").write_text(config.replace(str(clip_set), str(root)))
    assert main(["evaluate", *map(str, two)]) == 2
    assert "not tested on the same clips: 1 are in" in capsys.readouterr().err


def test_two_devices_give_the_same_figures(two, capsys):
    """Seven clips in steps that two devices share, ten views a clip: each clip once, the same scores."""
    alone, _ = evaluated(capsys, two[0], "--protocol", "10x1")
    saved = Scores.load(two[0] / "scores/10x1.npz")
    command = [sys.executable, "-m", "keras_stss.cli", "evaluate", two[0], "--protocol", "10x1", "--again", "--json"]
    result = subprocess.run(
        [*command, "--devices", "2", "evaluate.batch_size=25"],
        cwd=Path(__file__).resolve().parent.parent, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    both = json.loads(result.stdout)
    again = Scores.load(two[0] / "scores/10x1.npz")
    assert again.clips.tolist() == saved.clips.tolist()
    np.testing.assert_allclose(again.logits, saved.logits, rtol=1e-4, atol=1e-5)
    assert both["top1"] == alone["top1"] and both["clips"] == 7
    assert both["loss"] == pytest.approx(alone["loss"], rel=1e-4)
