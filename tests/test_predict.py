"""Predictions of many files: which ones, a row each, and a file that goes on after any end as if there were none."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import square_clip, write_video
from untrained import LABELS, write_runs

from keras_stss.cli import main
from keras_stss.data.annotations import Clip, DataError
from keras_stss.evaluation.listing import Listing
from keras_stss.evaluation.prediction_file import PredictionFile
from keras_stss.models import load_model

ODD = 'line\nbreak, "quoted" \u2028 ünï 手.mp4'


@pytest.fixture(scope="module")
def runs(clip_set, tmp_path_factory):
    return [str(run) for run in write_runs(clip_set, tmp_path_factory.mktemp("runs"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of different sizes and lengths, damaged ones, and a folder of frames, in the order in which they come."""
    import tensorflow as tf

    root = tmp_path_factory.mktemp("files")
    (root / "a").mkdir()
    sizes = {"2.mp4": {}, "10.mp4": {"height": 48, "width": 36}, "one.mp4": {"frames": 1}, ODD: {"frames": 3}}
    for number, (name, size) in enumerate(sizes.items()):
        write_video(root / "a" / name, square_clip(number % 3, number, **size))
    (root / "b" / "frames").mkdir(parents=True)
    for number, image in enumerate(square_clip(1, 9)):
        (root / "b" / "frames" / f"{number}.png").write_bytes(tf.io.encode_png(image).numpy())
    (root / "b" / "empty.avi").write_bytes(b"")
    (root / "b" / "text.mp4").write_text("no video at all " * 99)
    (root / "b" / ".hidden.mp4").write_bytes(b"")
    (root / "b" / "notes.txt").write_text("nor this")
    (root / "b" / "up").symlink_to(root)
    for number in range(5):
        write_video(root / f"z{number}.mp4", square_clip(number % 3, 20 + number))
    return root


NAMES = ["a/2.mp4", "a/10.mp4", f"a/{ODD}", "a/one.mp4", "b/empty.avi", "b/frames", "b/text.mp4"]
NAMES += [f"z{number}.mp4" for number in range(5)]


def command(*arguments):
    return main(["predict", *map(str, arguments)])


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


# --- which clips ------------------------------------------------------------------------------------------------------


def test_a_folder_is_all_that_lies_in_it_by_name(folder):
    listing = Listing()
    listing.add(str(folder))
    listing.add(str(folder / "z1.mp4"))  # known already
    listing.add(f"{folder}/./a//2.mp4")
    found = [(os.path.relpath(clip.id, folder), clip.kind) for clip in listing.clips]
    assert found == [(name, "frames" if name == "b/frames" else "video") for name in NAMES]
    assert listing.faults == {}


def test_lists_name_files_folders_and_parts(folder, tmp_path):
    (tmp_path / "list.txt").write_text(f"z0.mp4\n\n  b/frames\n{folder}/a\nz0.mp4\n")
    table = "path,start,end,label\nz1.mp4,0.1,0.5,x\nz1.mp4,,,x\nz2.mp4,2,1,x\nz2.mp4,soon,,x\nz2.mp4\n"
    (tmp_path / "parts.csv").write_text(table + f'"{folder / "a"}/line\nbreak.mp4",0,,x\n')
    listing = Listing()
    listing.add_list(str(tmp_path / "list.txt"), str(folder))
    listing.add_list(str(tmp_path / "parts.csv"), str(folder))
    assert [clip.id for clip in listing.clips[:2]] == ["z0.mp4", "b/frames"]
    assert [os.path.basename(clip.id) for clip in listing.clips[2:6]] == ["2.mp4", "10.mp4", ODD, "one.mp4"]
    parts = [(clip.id, clip.start, clip.end) for clip in listing.clips[6:]]
    assert parts[:2] == [("z1.mp4", 0.1, 0.5), ("z1.mp4", None, None)]
    assert parts[-1] == (f"{folder / 'a'}/line\nbreak.mp4", 0.0, None)
    assert {place.rpartition(":")[2]: reason for place, reason in listing.faults.items()} == {
        "4": "'z2.mp4': end must be after start. Received: start='2', end='1'",
        "5": "'z2.mp4': start and end must be seconds from the start of the video. Received: start='soon'",
        "6": "1 fields, the header has 4",
    }
    (tmp_path / "bare.csv").write_text("z0.mp4\n")
    with pytest.raises(DataError, match="the header must name"):
        listing.add_list(str(tmp_path / "bare.csv"))


# --- the file, without a model ----------------------------------------------------------------------------------------

CLIPS = [Clip(f"{number}{ODD}\udcff", f"/x/{number}", 0, "video", start=number / 3) for number in range(7)]
BATCH = 2


def outcome(clip):
    number = CLIPS.index(clip)
    return "no such file" if number in (1, 6) else [('a, "b"\n', 0.5 + number / 100), ("手", 1e-7)]


def fill(path, clips=CLIPS, **options):
    with PredictionFile(path, {"model": "m"}, 2, clips, BATCH, **options) as file:
        todo = [clip for clip in clips if clip.place not in file.done]
        for clip in todo:
            file.add(clip, outcome(clip))
        return len(todo), file.failed


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_file_cut_anywhere_becomes_the_same(tmp_path, suffix):
    path = tmp_path / f"p.{suffix}"
    assert fill(path) == (7, 2)
    whole, times = path.read_bytes(), []
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        times.append(fill(path)[0])
        assert path.read_bytes() == whole, length
    assert times[0] == 7 and times[-1] == 0 and set(times) > {0, 2, 7} and times == sorted(times, reverse=True)
    if suffix == "csv":
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
        assert [row["file"] for row in rows] == [clip.id for clip in CLIPS]
        assert rows[2]["top1"] == 'a, "b"\n' and float(rows[2]["probability1"]) == 0.52 and rows[1]["error"]
    else:
        assert [row["file"] for row in rows_of(path)] == [clip.id for clip in CLIPS]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_file_grows_is_retried_and_refuses_what_is_not_its_own(tmp_path, suffix):
    path = tmp_path / f"p.{suffix}"
    fill(path, CLIPS[4:6])
    assert fill(path, CLIPS[:3]) == (3, 1)  # those of another list stay
    before = path.read_bytes()
    assert fill(path, CLIPS[:3]) == (0, 1)
    assert fill(path, CLIPS[:3], retry=True) == (1, 1)
    assert path.read_bytes() != before and len(path.read_bytes()) == len(before)
    with pytest.raises(DataError, match=r'made otherwise \(model: "m" there, "n" now\)'):
        PredictionFile(path, {"model": "n"}, 2, CLIPS, BATCH)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0][:-9], *lines[1:]]))
    with pytest.raises(DataError, match=rf"p.{suffix}:\d+: no row of these predictions"):
        fill(path)
    (tmp_path / f"p.{suffix}.about.json").unlink()
    with pytest.raises(DataError, match="what made it is not known"):
        fill(path)
    held = PredictionFile(tmp_path / f"q.{suffix}", {}, 2, CLIPS, BATCH)
    with held, pytest.raises(DataError, match="another process is writing"):
        fill(tmp_path / f"q.{suffix}")
    with pytest.raises(DataError, match=r"\.jsonl or \.csv"):
        fill(tmp_path / "p.txt")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(runs, folder, tmp_path_factory):
    """What an undisturbed call writes."""
    out = tmp_path_factory.mktemp("whole") / "p.jsonl"
    assert command(runs[0], folder, "--out", out, "--batch-size", 3, "--top", 2) == 2
    return out


def test_each_file_gets_its_row(runs, folder, whole, capsys):
    rows = rows_of(whole)
    assert [os.path.relpath(row["file"], folder) for row in rows] == NAMES
    assert [row["file"] for row in rows if "error" in row] == [f"{folder}/b/empty.avi", f"{folder}/b/text.mp4"]
    for name in ("a/10.mp4", "b/frames", "z4.mp4"):
        assert command(runs[0], folder / name, "--json", "--top", 2) == 0
        (line,) = capsys.readouterr().out.splitlines()
        top = rows[NAMES.index(name)]["top"]
        assert [each["label"] for each in json.loads(line)["top"]] == [each["label"] for each in top]
        shares = [each["probability"] for each in json.loads(line)["top"]]
        np.testing.assert_allclose(shares, [each["probability"] for each in top], rtol=1e-4)


def test_a_second_call_does_what_is_missing(runs, folder, whole, tmp_path, capsys):
    out = tmp_path / "p.jsonl"
    shutil.copy(f"{whole}.about.json", f"{out}.about.json")
    content = whole.read_bytes()
    out.write_bytes(content[: len(content) * 2 // 3])
    arguments = (runs[0], folder, "--out", out, "--batch-size", 3, "--top", 2)
    assert command(*arguments, "--json") == 2
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert out.read_bytes() == content
    assert found["clips"] == 12 and found["failed"] == 2 and 0 < found["before"] < 12
    assert command(*arguments) == 2
    assert capsys.readouterr().out.startswith("12 clips, 12 of them before; 2 could not be read: --retry")
    assert command(runs[1], folder, "--out", out, "--top", 2) == 2
    assert "holds predictions made otherwise (models:" in capsys.readouterr().err


def test_a_killed_call_goes_on(runs, folder, whole, tmp_path):
    out = tmp_path / "p.jsonl"
    arguments = [runs[0], str(folder), "--out", str(out), "--batch-size", "3", "--top", "2"]
    started = [sys.executable, "-m", "keras_stss.cli", "predict", *arguments]
    process = subprocess.Popen(started, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": os.getcwd()})
    while process.poll() is None and not (out.is_file() and out.stat().st_size):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert out.stat().st_size > 0
    assert command(*arguments) == 2
    assert out.read_bytes() == whole.read_bytes()


def test_several_runs_and_views_are_averaged(runs, folder, tmp_path, capsys):
    files = [folder / "z0.mp4", folder / "b" / "empty.avi", folder / "z1.mp4"]
    found = {}
    for name, more in {"first": [], "second": [], "both": ["--with", runs[1]]}.items():
        run = runs[1] if name == "second" else runs[0]
        assert command(run, *files, "--json", "--protocol", "2x1", "--top", 9, *more) == 2
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [("error" in row) for row in rows] == [False, True, False]
        found[name] = [{each["label"]: each["probability"] for each in row["top"]} for row in (rows[0], rows[2])]
    for first, second, both in zip(found["first"], found["second"], found["both"], strict=True):
        assert both == pytest.approx({label: (first[label] + second[label]) / 2 for label in LABELS}, rel=1e-4)


def test_files_may_stand_behind_options(runs, folder, capsys):
    """As in docs/predict.md; behind -- they may begin with a dash."""
    assert command(runs[0], "--with", runs[1], folder / "z0.mp4", "--json", folder / "z1.mp4", "--", "-z.mp4") == 2
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in rows] == [f"{folder}/z0.mp4", f"{folder}/z1.mp4", "-z.mp4"]
    assert [row.get("error") for row in rows] == [None, None, "no such file"]
    for wrong in (["--bogus"], ["--stream", "x"]):
        with pytest.raises(SystemExit) as ended:
            command(runs[0], *wrong, folder)
        assert ended.value.code == 2


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_scores_that_are_no_numbers_are_an_error(runs, folder, tmp_path, suffix):
    """A line each, in JSON that others can read too, alone and averaged with a run that has numbers."""
    spoilt, out = tmp_path / "spoilt", tmp_path / f"p.{suffix}"
    shutil.copytree(runs[1], spoilt)
    model = load_model(spoilt)
    model.get_layer("logits").bias.assign([float("nan"), 0.0, 0.0])
    model.save(spoilt / "best.keras")
    arguments = [spoilt] if suffix == "csv" else [runs[0], "--with", spoilt]
    assert command(*arguments, folder / "z0.mp4", folder / "z1.mp4", "--out", out) == 2
    assert out.read_text().count("the model's scores of it are no numbers") == 2 and "NaN" not in out.read_text()


def test_names_on_one_line_and_usage(runs, folder, tmp_path, capsys):
    assert command(runs[0], folder / "a" / ODD, tmp_path / "no\nfile.mp4") == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == f'{folder}/a/line\\nbreak, "quoted" \\u2028 ünï 手.mp4'
    assert captured.err.splitlines() == [f"{tmp_path}/no\\nfile.mp4: no such file"]
    (tmp_path / "empty.txt").write_text("\n")
    assert command(runs[0], "--list", tmp_path / "empty.txt") == 2
    assert "no clip is listed" in capsys.readouterr().err
    assert command(runs[0], folder, "--top", 0) == 2
    assert "--top must be at least 1" in capsys.readouterr().err
    for wrong in (["--retry"], ["--rate", "3"], ["--stream", "x", "--list", "y"], []):
        with pytest.raises(SystemExit) as ended:
            command(runs[0], *([folder] if wrong[:1] in (["--retry"], ["--rate"]) else []), *wrong)
        assert ended.value.code == 2
