"""The benchmark of data: it runs without peers, finds wrong frames, and its tables say what was not measured."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from keras_stss.bench import clips, data, machine, tables
from keras_stss.bench.contestants import CONTESTANTS
from keras_stss.cli import main
from keras_stss.data.annotations import Clip
from keras_stss.data.decode import read_clip


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run without peers: (result, page that the tables were put into)."""
    folder = tmp_path_factory.mktemp("bench")
    page = folder / "page.md"
    page.write_text("before\n<!-- bench data -->\nstale tables\n<!-- end of bench data -->\nafter\n")
    options = ["--quick", "--peers", str(folder), "--out", str(folder / "out.json"), "--markdown", str(page)]
    assert main(["bench", "data", *options]) == 0
    return json.loads((folder / "out.json").read_text()), page.read_text()


def test_ours_are_measured_and_right(quick):
    result, _ = quick
    ours = [row for case in result["cases"] for row in case["rows"] if row["where"] == "ours"]
    assert len(ours) >= 3 * (3 + 1)
    for row in ours:
        assert "error" not in row and row.get("wrong") is None and row["median"] > 0, row
    stages = {(case["shape"], case["mode"]) for case in result["cases"]}
    assert {mode for shape, mode in stages if shape == "webm (VP9)"} == {"read", "decode", "batch"}
    assert ("Augmentation alone, of frames in memory", "augment") in stages


def test_absent_peers_are_told(quick):
    result, page = quick
    peers = [row for case in result["cases"] for row in case["rows"] if row["where"] == "torch"]
    assert {row["error"] for row in peers} == {"no environment .venv-peers (make peers builds it)"}
    assert "not measured: no environment .venv-peers (make peers builds it)" in page


def test_memory_of_a_long_run(quick):
    for row in quick[0]["memory"]:
        assert len(row["used"]) == 3 and 0 < min(row["used"]) <= row["largest"]


def test_tables_take_their_place(quick):
    result, page = quick
    assert page.startswith("before\n<!-- bench data -->\n") and page.endswith("<!-- end of bench data -->\nafter\n")
    assert "stale tables" not in page and "These figures mean nothing" in page
    for case in result["cases"]:
        assert f"**{case['shape']}**" in page


def test_every_form_holds_the_frames_it_is_asked_for(tmp_path):
    clips.make(tmp_path, 1, 9, 64, 80, 1)
    indices = np.array([0, 2, 3, 8])
    for form, (_, kind) in clips.FORMS.items():
        (path,) = clips.paths(tmp_path, form, 1)
        assert path == data._paths(tmp_path, form, 1)[0]
        frames = read_clip(Clip(path, path, 0, kind), lambda count: indices)
        corners = frames[:, :4, :4].mean((1, 2, 3))
        np.testing.assert_allclose(corners, clips.tags(indices), atol=data.TAG_TOLERANCE)


def test_frames_that_follow_one_another_are_told_apart():
    steps = np.abs(np.diff(clips.tags(np.arange(200)).astype(int)))
    assert steps.min() > 2 * data.TAG_TOLERANCE


def test_another_frame_and_other_pixels_are_wrong():
    truth = np.full((2, 3, 32, 48, 3), 100, "uint8")
    compare = data._comparison(truth)
    assert compare({"frames": truth}) == {"difference": 0.0, "wrong": None}
    corner = truth.copy()
    corner[1, 2, :2, :2] += 37
    assert compare({"frames": corner})["wrong"] == "it gives other frames"
    assert compare({"frames": truth + 6})["wrong"] == "its pixels differ by 6.0 of 255"
    assert "not (2, 3, 32, 48, 3)" in compare({"frames": truth[:, 1:]})["wrong"]


def test_tables_count_clips_and_frames_and_tell_the_ratio():
    ours = {"label": "ours", "where": "ours", "base": "ours", "median": 0.1, "low": 0.08, "high": 0.125, "others": 0.0}
    theirs = ours | {"label": "theirs", "median": 0.2, "low": 0.2, "high": 0.2, "others": 0.5, "difference": 0.25}
    missing = {"label": "absent", "where": "torch", "base": "ours", "error": "no environment"}
    wrong = ours | {"label": "wrong", "wrong": "it gives other frames"}
    rows = [ours, theirs, missing, wrong]
    cases = [{"shape": "S", "mode": mode, "threads": 2, "clips": 16, "rows": rows} for mode in ("decode", "batch")]
    memory = [{"form": "S", "batches": 9, "used": [1e6, 2e6, 2e6], "largest": 3e6}, {"form": "T", "error": "why"}]
    size = {"length": 48, "height": 240, "width": 320, "frames": 8, "crop": 224, "batch": 8}
    description = {"cpu": "C", "cores": 2, "memory_gb": 8, "system": "L", "gpu": None, "date": "2026-01-01"}
    result = {"kind": "data", "cases": cases, "memory": memory, "size": size, "machine": description, "versions": {}}
    text = tables.render(result | {"seconds": 1.0, "quick": False})
    assert "|  | decode, 2 threads | whole stream, 2 threads | difference |" in text
    assert "| ours | 160 (128–200) · 1280 · 1.00 | 160 (128–200) · 1280 · 1.00 |  |" in text
    assert "| theirs | 80.0 (80.0–80.0) · 640 · 0.50 † |" in text and "| 0.25 |" in text
    assert "| absent | not measured: no environment |  |  |" in text  # the reason once
    assert "| wrong | 160, but it gives other frames |" in text
    assert "| S, 9 batches | 1 | 2 | 2 | 3 |" in text and "| T | not measured: why |" in text


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="Linux tells who started whom")
def test_processes_started_by_a_worker_are_not_others():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in machine._children([os.getpid()])
        assert child.pid not in machine._children([os.getpid(), child.pid])
        child.communicate(b"\n")


def test_contestants_are_known_to_our_worker():
    named = [contestant for _, _, row in data.FORMS.values() for contestant in row]
    for contestant in [*named, *data.AUGMENT]:
        assert contestant.where != "ours" or ("data", contestant.name) in CONTESTANTS
