"""The benchmark of training: our loop and model.fit see the same clips and lose the same, and the tables say so."""

import json
import time

import numpy as np
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
    for ratio, of in (("ratio", "seconds"), ("processor_ratio", "processor")):
        ((own,), (other,)) = loop["visits"], fit["visits"]
        assert loop[ratio]["median"] == pytest.approx(other[of] / own[of]) and fit[ratio]["median"] == 1.0
        assert loop[ratio]["low"] is None  # of one pair
    assert f"**{result['cases'][0]['shape']}**" in page and "stale tables" not in page
    assert "These figures mean nothing" in page and page.endswith("<!-- end of bench train -->\nafter\n")


def test_tables_count_clips_and_compare_like_with_like():
    row = {"where": "ours", "wrong": None, "difference": 0.0, "others": 0.0, "waited": None, "base": "fit"}
    row |= {"ratio": {"median": 1.25, "low": 1.211, "high": 1.306}}
    row |= {"processor_ratio": {"median": 1.1, "low": None, "high": None}}
    fit = row | {"label": "fit", "median": 0.5, "low": 0.4, "high": 0.8}
    loop = row | {"label": "loop", "median": 0.4, "low": 0.4, "high": 0.4, "waited": 0.0123, "others": 0.5}
    compiled = loop | {"label": "loop, XLA", "base": "fit, XLA", "wrong": "its first loss is 1, not 2", "others": 0.0}
    broken = {"label": "fit, XLA", "where": "ours", "error": "no compiler", "base": "fit, XLA", "waited": None}
    lonely = loop | {"label": "lonely", "base": "fit, XLA", "ratio": None, "processor_ratio": None, "others": 0.0}
    description = {"cpu": "C", "cores": 2, "memory_gb": 8, "system": "L", "gpu": None, "date": "2026-01-01"}
    cases = [{"shape": "S", "clips": 20, "rows": [loop, fit, compiled, broken, lonely]}]
    result = {"kind": "train", "cases": cases, "machine": description, "versions": {}, "seconds": 1.0, "quick": False}
    text = tables.render(result)
    assert "| loop | 50.0 (50.0–50.0) † | 1.25 (1.21–1.31) | 1.10 | 1.2% | 0e+00 |" in text
    assert "| fit | 40.0 (25.0–50.0) | 1 | 1 |  | 0e+00 |" in text
    assert "| loop, XLA | 50.0, but its first loss is 1, not 2 |  |  | 1.2% |" in text
    assert "| fit, XLA | not measured: no compiler |  |  |  |  |" in text
    assert "| lonely | 50.0 (50.0–50.0) |  |  | 1.2% | 0e+00 |" in text
    assert "in 1 of 4 figures" in text


def test_the_interval_of_a_median_is_the_sign_tests():
    """Places from tables of the binomial distribution: of 6 numbers the ends, of 20 the 6th and 15th."""
    numbers = [float(number) for number in np.random.default_rng(0).permutation(20) + 1]
    assert training.median_with_interval(numbers) == {"median": 10.5, "low": 6.0, "high": 15.0}
    assert training.median_with_interval([1.0, 2.0, 3.0, 4.0, 5.0, 60.0]) == {"median": 3.5, "low": 1.0, "high": 60.0}
    assert training.median_with_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3.0, "low": None, "high": None}


def test_the_interval_holds_the_median_as_often_as_it_says():
    """Of a skewed distribution; 20 numbers give 95.9 %."""
    samples = np.random.default_rng(1).exponential(size=(4000, 20))
    found = [training.median_with_interval(sample) for sample in samples]
    assert np.mean([each["low"] <= np.log(2) <= each["high"] for each in found]) == pytest.approx(0.959, abs=0.012)


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
