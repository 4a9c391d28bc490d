"""The benchmark of training: our loop and model.fit see the same clips and lose the same, and the tables say so."""

import json
import time

import pytest

from keras_stss.bench import loops, tables, training
from keras_stss.cli import main


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run: (result, page that the tables were put into)."""
    folder = tmp_path_factory.mktemp("bench")
    page = folder / "page.md"
    page.write_text("before\n<!-- bench train -->\nstale tables\n<!-- end of bench train -->\nafter\n")
    assert main(["bench", "train", "--quick", "--out", str(folder / "out.json"), "--markdown", str(page)]) == 0
    return json.loads((folder / "out.json").read_text()), page.read_text()


def test_both_are_measured_and_have_seen_the_same(quick):
    result, page = quick
    ((loop, fit),) = [case["rows"] for case in result["cases"]]
    for row in (loop, fit):
        assert "error" not in row and row["wrong"] is None and row["median"] > 0, row
    assert 0 <= fit["difference"] < training.TOLERANCE
    assert 0 <= loop["waited"] <= 1 and fit["waited"] is None
    assert f"**{result['cases'][0]['shape']}**" in page and "stale tables" not in page
    assert "These figures mean nothing" in page and page.endswith("<!-- end of bench train -->\nafter\n")


def test_tables_count_clips_and_compare_like_with_like():
    row = {"where": "ours", "wrong": None, "difference": 0.0, "others": 0.0, "waited": None, "base": "fit"}
    fit = row | {"label": "fit", "median": 0.5, "low": 0.4, "high": 0.8}
    loop = row | {"label": "loop", "median": 0.4, "low": 0.4, "high": 0.4, "waited": 0.0123, "others": 0.5}
    compiled = loop | {"label": "loop, XLA", "base": "fit, XLA", "wrong": "its first loss is 1, not 2", "others": 0.0}
    broken = {"label": "fit, XLA", "where": "ours", "error": "no compiler", "base": "fit, XLA", "waited": None}
    description = {"cpu": "C", "cores": 2, "memory_gb": 8, "system": "L", "gpu": None, "date": "2026-01-01"}
    cases = [{"shape": "S", "clips": 20, "rows": [loop, fit, compiled, broken]}]
    result = {"kind": "train", "cases": cases, "machine": description, "versions": {}, "seconds": 1.0, "quick": False}
    text = tables.render(result)
    assert "| loop | 50.0 (50.0–50.0) † | 1.25 | 1.2% | 0e+00 |" in text
    assert "| fit | 40.0 (25.0–50.0) | 1.00 |  | 0e+00 |" in text
    assert "| loop, XLA | 50.0, but its first loss is 1, not 2 |  | 1.2% |" in text
    assert "| fit, XLA | not measured: no compiler |  |  |  |" in text
    assert "in 1 of 3 figures" in text


def test_a_loop_goes_on_for_the_steps_of_a_call_and_rests():
    done = []

    def loop(step):
        for number in range(8):
            done.append(number)
            step(10.0 + number)

    turns = loops._Turns(3, loop)
    time.sleep(0.05)
    assert done == []
    turns()
    time.sleep(0.05)
    assert done == [0, 1, 2] and turns.losses == [10.0]
    turns()
    assert done == [0, 1, 2, 3, 4, 5]
    with pytest.raises(RuntimeError, match="ended before"):
        turns()


def test_what_goes_wrong_in_a_loop_is_told():
    def loop(step):
        step(1.0)
        raise ValueError("no such clip")

    turns = loops._Turns(1, loop)
    turns()
    for _ in range(2):
        with pytest.raises(ValueError, match="no such clip"):
            turns()
