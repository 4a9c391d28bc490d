"""The ablations: every row is a config, and the page says what the runs gave."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from keras_stss.config import load_config

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def ablations():
    spec = importlib.util.spec_from_file_location("ablations", ROOT / "benchmarks" / "ablations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_up(name, seed, top1):
    return {"row": name, "seed": seed, "top1": top1, "scenes": [0.9, top1, 0.1], "order": [0.9, 0.5, 0.5]}


def test_every_row_is_a_config_of_its_own(ablations):
    configs = {name: load_config(ablations.CONFIG, row.overrides()) for name, row in ablations.ROWS.items()}
    assert len(configs) == 19
    for name, config in configs.items():
        row, blocks = ablations.ROWS[name], config.model.insert
        assert config.model.temporal == row.temporal
        assert bool(blocks) == bool(ablations.OFFSETS[row.offsets])
        for block in blocks.values():
            assert block.selfy.temporal_offsets == ablations.OFFSETS[row.offsets]
            assert (block.selfy.extraction, block.selfy.integration) == (row.extraction, row.integration)
    networks = {json.dumps(config.model.model_dump(mode="json"), sort_keys=True) for config in configs.values()}
    assert len(networks) == 18
    longer = configs.pop("tsm-none-longer4")
    assert longer.train.epochs == 4 * ablations.EPOCHS == 4 * configs["tsm-none"].train.epochs
    assert len({repr((config.data, config.train, config.evaluate)) for config in configs.values()}) == 1
    assert load_config(ablations.CONFIG) == configs["tsm-within3-conv-conv"]


def test_what_offsets_can_know(ablations):
    """30 classes, ten for each number of scenes: those within reach, and one guess among the rest."""
    found = [ablations.known(ablations.Row("tsn", offsets)) * 30 for offsets in ablations.OFFSETS]
    np.testing.assert_allclose(found, [1, 11, 11, 21, 30])


def test_figures_of_a_run(ablations):
    """Classes 0 and 1 are a pair of one scene, 10 and 11 of two, 28 and 29 of three."""
    labels, logits = np.array([0, 1, 10, 28, 29]), np.zeros((5, 30))
    for clip, (first, second) in enumerate([(0, 1), (0, 1), (10, 11), (5, 28), (5, 28)]):
        logits[clip, first], logits[clip, second] = 2, 1
    figures = ablations.figures_of(labels, logits)
    assert figures == {"top1": 0.4, "scenes": [0.5, 1.0, 0.0], "order": [0.5, 1.0, 0.5]}


def test_tables_and_plot_of_whatever_there_is(ablations, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    runs = [made_up("tsn-within2-conv-conv", seed, top1) for seed, top1 in enumerate([0.5, 0.6, 0.7])]
    runs += [made_up("tsm-within3-mlp-fc", 0, 0.25)]
    runs += [made_up("tsn-within1-conv-conv", seed, top1) for seed, top1 in enumerate([0.3, 0.4])]
    runs += [made_up("tsn-within3-conv-conv", seed, top1) for seed, top1 in enumerate([0.65, 0.65])]
    page = tmp_path / "ablations.md"
    places = [f"<!-- bench {kind} -->\nold\n<!-- end of bench {kind} -->\n" for kind in ablations.PLACES]
    page.write_text("before\n" + "between\n".join(places) + "after\n")
    monkeypatch.setattr(ablations, "PAGE", page)
    ablations.write_page(runs)
    lines = page.read_text().splitlines()
    assert "old" not in lines
    assert [word for word in lines if word in ("before", "between", "after")] == [
        "before",
        "between",
        "between",
        "after",
    ]
    (row,) = [line for line in lines if line.startswith("| TSN | {-2…2}")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == ["70.0", "**60.0 ± 10.0**", "90.0 ± 0.0", "60.0 ± 10.0", "10.0 ± 0.0", "50.0, 60.0, 70.0"]
    assert "| mlp | 25.0 | – | – |" in lines
    assert any("0 to 3 of each row" in line for line in lines)
    assert "| TSN: {-2…2} over {-1…1} | +25.0 | each is above each of the other row |" in lines
    assert "| TSN: {-3…3} over {-2…2} | +5.0 | they overlap |" in lines
    assert "| TSM: {-2…2} over {-1…1} | – | |" in lines
    assert (tmp_path / "ablations.svg").read_text().count("two scenes") > 0


def test_finished_runs_are_kept(ablations, tmp_path, monkeypatch):
    """Those of this folder replace their like; others stay."""
    result = tmp_path / "result.json"
    monkeypatch.setattr(ablations, "RESULT", result)
    ablations.keep([made_up("a", 0, 0.1), made_up("b", 0, 0.2)])
    folder = tmp_path / "runs" / "b-0"
    folder.mkdir(parents=True)
    (folder / "figures.json").write_text(json.dumps(made_up("b", 0, 0.3)))
    ablations.keep(ablations.finished(tmp_path / "runs"))
    assert [(run["row"], run["top1"]) for run in json.loads(result.read_text())["runs"]] == [("a", 0.1), ("b", 0.3)]
