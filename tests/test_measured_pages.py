"""The pages on precision and on robustness say what the runs gave."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from keras_stss.config import load_config

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def benchmark(monkeypatch):
    """Function name → module of that file in benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def lines_of(page, text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if text in line]


def page_with(places, path):
    marked = [f"<!-- bench {kind} -->\nold\n<!-- end of bench {kind} -->\n" for kind in places]
    path.write_text("before\n" + "".join(marked) + "after\n")
    return path


# --- precision --------------------------------------------------------------------------------------------------------


def trial_of(losses):
    return {"losses": list(losses), "skipped": 1, "val_loss": 0.5, "val_top1": 0.75}


def test_every_trial_is_a_config_of_its_own_that_sees_the_same_clips(benchmark):
    precision = benchmark("precision")
    configs = {
        name: load_config(precision.CONFIG, [*precision.CHANGES, *trial.changes])
        for name, trial in precision.TRIALS.items()
    }
    for name, trial in precision.TRIALS.items():
        base = configs.get(trial.base)
        if base and name != "seed":
            assert configs[name].data == base.data and configs[name].train.seed == base.train.seed
            assert configs[name].train.schedule == base.train.schedule
            assert (configs[name].train.epochs, configs[name].train.batch_size) == (
                base.train.epochs, base.train.batch_size,
            )  # fmt: skip
    kinds = {name: (each.train.precision, each.train.xla, each.train.accumulate) for name, each in configs.items()}
    assert kinds["all"] == kinds["frozen-all"] == ("mixed_float16", True, 2)
    assert kinds["float32"] == kinds["rounding"] == kinds["again"] == ("float32", False, 1)


def test_what_a_run_has_written_down(benchmark, trained_run):
    found = benchmark("precision").record(trained_run)
    last = [json.loads(line) for line in (trained_run / "metrics.jsonl").read_text().splitlines()][-1]
    assert len(found["losses"]) == 20 and found["skipped"] == 0
    assert np.mean(found["losses"][-5:]) == pytest.approx(last["train_loss"], rel=1e-5)
    assert (found["val_loss"], found["val_top1"]) == (last["val_loss"], last["val_top1"])


def test_how_far_a_curve_strays(benchmark):
    """One step in the middle is 30 % too high, the last ones are 10 % too low."""
    precision = benchmark("precision")
    base = np.full(100, 2.0)
    losses = base.copy()
    losses[40] *= 1.3
    losses[-precision.END :] *= 0.9
    found = precision.strays(losses, base)
    mean = (0.3 + 0.1 * precision.END) / 100
    wanted = {"beginning": 0, "close": 40, "mean": mean, "largest": 0.3, "smoothed": 0.1, "nats": 0.2, "end": -0.1}
    assert found == pytest.approx(wanted)
    assert precision.strays(base, base)["close"] == 100
    assert precision.strays(losses[::-1], base)["beginning"] == pytest.approx(0.1)


def test_the_page_on_precision(benchmark, tmp_path, monkeypatch):
    precision = benchmark("precision")
    monkeypatch.setattr(precision, "PAGE", page_with([precision.PLACE], tmp_path / "page.md"))
    monkeypatch.setattr(precision, "RESULT", tmp_path / "precision.json")
    base = np.linspace(3, 1, 60)
    precision.keep("float16", trial_of(1.02 * base))
    precision.keep("float32", trial_of(base))
    precision.keep("frozen-parts", trial_of(base))  # what it is compared with is not there
    result = json.loads((tmp_path / "precision.json").read_text())
    assert list(result["trials"]) == ["float32", "float16", "frozen-parts"]
    precision.write_page(result)
    page = (tmp_path / "page.md").read_text()
    assert "old" not in page and page.startswith("before\n") and page.endswith("after\n") and "frozen" not in page
    (line,) = lines_of(page, "| mixed_float16 |")
    nats = 0.02 * base[: precision.WINDOW].mean()
    assert line[1:8] == ["2 %", "0", "2 %", "2 %", "2 %", f"{nats:.2g}", "+2.0%"]
    assert line[-3:] == ["0.500", "75.0%", "1"]
    assert "mixed_float16" in (tmp_path / "precision.svg").read_text()


# --- robustness -------------------------------------------------------------------------------------------------------


def figures(one, backwards=0.0):
    """Of a run that tells a share of one scene's clips, half as many of two and none of three."""
    return {"top1": one / 2, "scenes": [one, one / 2, 0.0], "backwards": backwards, "motion": one}


def record(row, seed, clean, kept):
    worse = [{"severity": step, **figures(clean * kept**step)} for step in (1, 2)]
    ends = [{"severity": 1, **figures(0.0, 0.9)}]
    corruptions = {"center_occlusion": worse, "center_motion_blur": worse, "dropped_frames": worse}
    return {"row": row, "seed": seed, "clean": figures(clean), "corruptions": corruptions | {"reversed_frames": ends}}


def test_the_page_on_robustness(benchmark, tmp_path, monkeypatch):
    robustness = benchmark("robustness")
    monkeypatch.setattr(robustness, "PAGE", page_with(robustness.PLACES, tmp_path / "page.md"))
    monkeypatch.setattr(robustness, "RESULT", tmp_path / "robustness.json")
    for seed, kept in enumerate([0.9, 0.7]):
        robustness.keep(record("tsn-within1-conv-conv", seed, 0.96, kept))
    robustness.write_page(json.loads((tmp_path / "robustness.json").read_text())["runs"])
    page = (tmp_path / "page.md").read_text()
    assert "old" not in page
    occluded, _, scenes, video = lines_of(page, "TSN {-1…1}")
    # 90 and 70 % at the first severity, 81 and 49 % at the second.
    assert occluded[2:] == ["48.0 ± 0.0", "80.0 ± 14.1", "65.0 ± 22.6", "2"]
    assert scenes[1:] == ["65.0 ± 22.6", "–", "–"]
    assert video[1:] == ["72.5 ± 18.4", "0.0 ± 0.0", "72.5 ± 18.4", "90.0 ± 0.0"]
    assert all(set(line[1:]) == {"–"} for line in lines_of(page, "TSN {-3…3}")[2:])
    assert "dropped frames" in (tmp_path / "robustness.svg").read_text()


def test_which_way_clips_are_taken_to_go(benchmark):
    """Classes 0 and 1 are a pair of one scene; 20 has the motion of 0 over three scenes, which makes it likelier."""
    labels, logits = np.array([0, 0, 10]), np.full((3, 30), -30.0)
    logits[0, [0, 1, 20]] = np.log([0.3, 0.4, 0.3])
    logits[1, [1, 5]] = np.log([0.4, 0.6])
    logits[2, 11] = 0.0
    found = benchmark("robustness").directions(labels, logits)
    assert found == pytest.approx({"backwards": 2 / 3, "motion": 0.5})


def test_figures_of_other_corruptions_stay(benchmark, tmp_path, monkeypatch):
    robustness = benchmark("robustness")
    monkeypatch.setattr(robustness, "RESULT", tmp_path / "robustness.json")
    before, after = record("tsn-within1-conv-conv", 0, 0.9, 0.9), record("tsn-within1-conv-conv", 0, 0.9, 0.5)
    before["corruptions"].pop("dropped_frames")
    after["corruptions"] = {"dropped_frames": after["corruptions"]["dropped_frames"]}
    robustness.keep(before)
    robustness.keep(after)
    (kept,) = json.loads((tmp_path / "robustness.json").read_text())["runs"]
    assert set(kept["corruptions"]) == {
        "center_occlusion", "center_motion_blur", "reversed_frames", "dropped_frames",
    }  # fmt: skip
