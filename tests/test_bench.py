"""The benchmark: it runs, it holds everybody's numbers to the same truth, and its tables say what was not measured."""

import json

import numpy as np
import pytest

from keras_stss import ops
from keras_stss.bench import bench, tables, truth
from keras_stss.bench.race import Contestant, Effort, Task, race
from keras_stss.bench.workers import WorkerError, Workers
from keras_stss.cli import main

CASE = ((1, 3, 5, 4, 6), (-1, 0, 2), (3, 5))


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run without peers: (exit code's result, tables, page they were put into)."""
    folder = tmp_path_factory.mktemp("bench")
    page = folder / "page.md"
    page.write_text("before\n<!-- bench stss -->\nold\n<!-- end of bench stss -->\nafter\n")
    options = ["--quick", "--peers", str(folder), "--out", str(folder / "out.json"), "--markdown", str(page)]
    assert main(["bench", "stss", *options]) == 0
    return json.loads((folder / "out.json").read_text()), page.read_text()


def test_truth_is_the_operation():
    rng = np.random.default_rng(0)
    features = rng.standard_normal(CASE[0])
    expected = ops.stss(features.astype("float32"), *CASE[1:], implementation="reference")
    np.testing.assert_allclose(truth.stss(features, *CASE[1:]), expected, atol=1e-6)


def test_truth_of_the_gradient_by_differences():
    rng = np.random.default_rng(1)
    features, direction = rng.standard_normal((2, *CASE[0]))
    weight = rng.standard_normal((*CASE[0][:4], 3, 3, 5))
    step = 1e-5
    ends = [np.sum(weight * truth.stss(features + sign * step * direction, *CASE[1:])) for sign in (1, -1)]
    slope = np.sum(truth.stss_gradient(features, weight, *CASE[1:]) * direction)
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-7)


def test_all_of_ours_are_measured_and_right(quick):
    result, _ = quick
    assert [case["mode"] for case in result["cases"]] == ["forward", "step"]
    for case in result["cases"]:
        ours = [row for row in case["rows"] if row["where"] == "ours" and row["label"] != "keras_stss, native"]
        assert len(ours) == 6
        for row in ours:
            assert row["wrong"] is None and row["difference"] < 1e-5, row
            assert 0 < row["low"] <= row["median"] <= row["high"]
        assert case["floors"]["arithmetic"] > case["floors"]["arithmetic_inside"] > 0 and case["floors"]["copy"] > 0
    assert all(row["reference step"] > 0 for row in result["growth"])


def test_memory_counts_what_a_call_holds(quick):
    """Linux only: elsewhere there is no figure, and the tables leave it out."""
    memory = [row.get("memory") for case in quick[0]["cases"] for row in case["rows"] if row["where"] == "ours"]
    assert all(value is None or 0 <= value < 50e6 for value in memory)


def test_absent_peers_are_told(quick):
    result, page = quick
    peers = [row for case in result["cases"] for row in case["rows"] if row["where"] != "ours"]
    assert len(peers) == 12
    assert {row["error"] for row in peers} == {
        "no environment .venv-peers (make peers builds it)",
        "no environment .venv-peers-tfa (make peers builds it)",
    }
    assert "not measured: no environment .venv-peers (make peers builds it)" in page


def test_tables_take_their_place(quick):
    result, page = quick
    assert page.startswith("before\n<!-- bench stss -->\n**(1, 3, 6, 5, 8)")
    assert page.endswith("<!-- end of bench stss -->\nafter\n") and "old" not in page
    assert "These figures mean nothing" in page and "GPU: " in page
    for row in result["cases"][0]["rows"]:
        assert f"| {row['label']} |" in page


def test_tables_tell_wrong_numbers_and_a_busy_machine():
    right = {
        "label": "ours",
        "base": "ours",
        "difference": 1e-7,
        "wrong": None,
        "median": 0.010,
        "low": 0.009,
        "high": 0.011,
        "calls": 9,
        "others": 0.5,
    }
    wrong = right | {"label": "theirs", "wrong": "its gradient is wrong", "others": 0.0}
    cases = [{"shape": "S", "mode": mode, "rows": [right, wrong]} for mode in ("forward", "step")]
    machine = {"cpu": "C", "cores": 2, "memory_gb": 8, "system": "L", "gpu": "G9", "date": "2026-01-01"}
    result = {"kind": "block", "cases": cases, "machine": machine, "versions": {}, "seconds": 1.0, "quick": False}
    text = tables.render(result)
    assert "10.0 (9.00–11.0) †" in text and "The machine was busy" in text
    assert "10.0, but its gradient is wrong" in text
    assert "| theirs | 10.0, but its gradient is wrong |  |" in text  # and no ratio
    assert "| 1.00 |" in text
    assert "G9" in text


def test_a_contestant_that_computes_something_else_is_found():
    features = np.ones(CASE[0], "float32")
    case = {"offsets": CASE[1], "window": CASE[2]}
    arrays = {"features": features, "gradient": np.ones((*CASE[0][:4], 3, 3, 5), "float32")}
    seen = {}

    def compare(found):
        seen.update(found)
        return {"difference": float(np.max(np.abs(found["volume"]))), "wrong": "it is not zero"}

    with Workers() as workers:
        contestants = [Contestant("ours", "reference", "R"), Contestant("ours", "nobody", "N")]
        task = Task("stss", case, arrays, "forward", compare)
        rows = race(workers, [(contestant, task) for contestant in contestants], Effort(1, 0.001))
    assert rows[0]["wrong"] == "it is not zero" and rows[0]["difference"] == pytest.approx(1.0, abs=1e-5)
    assert seen["volume"].shape == (1, 3, 5, 4, 3, 3, 5)
    assert "error" in rows[1] and "median" not in rows[1]


def test_a_worker_that_dies_is_told(tmp_path):
    environment = tmp_path / ".venv-peers" / "bin"
    environment.mkdir(parents=True)
    (environment / "python").write_text("#!/bin/sh\necho it broke >&2\nexit 3\n")
    (environment / "python").chmod(0o755)
    with Workers(tmp_path) as workers, pytest.raises(WorkerError, match="code 3: it broke"):
        workers.start("torch")


def test_a_reason_left_by_make_peers_is_told(tmp_path):
    (tmp_path / ".venv-peers-tfa").mkdir()
    (tmp_path / ".venv-peers-tfa" / "why-not.txt").write_text("no Python 3.11\n")
    with Workers(tmp_path) as workers, pytest.raises(WorkerError, match=r"\.venv-peers-tfa \(no Python 3\.11\)"):
        workers.start("addons")


def test_blocks_run(tmp_path):
    result = bench("block", quick=True, peers=tmp_path)
    rows = [row for case in result["cases"] for row in case["rows"] if row["where"] == "ours"]
    assert len(rows) == 12
    for row in rows:
        assert row.get("wrong") is None and ("median" in row or "native" in row["label"]), row


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stss", "--peers", "/no/such/folder"], "no folder /no/such/folder"),
        (["stss", "--markdown", "README.md"], "no place for the tables"),
        (["stss", "--out", "/no/such/folder/out.json"], "No such file or directory"),
        (["model", "--crop", "8"], "crop must be at least 32"),
        (["stss", "--clips", "3"], "model"),
    ],
)
def test_mendable_errors(arguments, words, capsys, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    assert main(["bench", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("keras-stss: ") and words in message and message.count("\n") == 1
