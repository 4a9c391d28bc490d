"""What the pages promise: links lead somewhere, nothing is left to fill in, the example runs, configs are real."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_stss.config import load_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".venv") or part == "node_modules" for part in path.relative_to(ROOT).parts)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not link.startswith("http") and not (page.parent / link).exists()] == []


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=lambda path: path.name)
def test_nothing_is_left_to_fill_in(page):
    words = re.findall(
        r"\b[A-Z]{2,}_(?:TABLE|WORDS|COST)\b|\b(?:EXPECTED|DURATION|TODO|FIXME)\b", page.read_text("utf-8")
    )
    assert words == []


def test_the_examples_of_the_readme_run(tmp_path, monkeypatch):
    """The page's own lines, as a reader would run them; the one that saves a model saves what it made."""
    monkeypatch.chdir(tmp_path)
    saved = []
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL):
        names = {}
        exec(compile(code, "README.md", "exec"), names)
        if "mine.keras" in code:
            saved.append(names["model"])
    (model,) = saved
    clip = np.random.default_rng(0).uniform(size=(1, 4, 48, 52, 3)).astype("float32")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "mine.keras")(clip), model(clip))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_config_has_its_header(path):
    load_config(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    for word in ("Paper:", "Expected:", "Duration:", "Command:"):
        assert any(line.startswith(f"# {word}") for line in lines), word
    assert f"--config {path.name}" in "\n".join(line for line in lines if line.startswith("#"))


def test_papers_recipe():
    """SELFY, appendix A: 50 epochs from 0.01, a tenth after 30 and 40, 8 frames of 240x320 cropped to 224."""
    for name in ("ss_v1.yaml", "ss_v2.yaml"):
        config = load_config(ROOT / "configs" / name)
        block = config.model.insert["res3"].selfy
        assert (config.model.backbone, config.model.temporal) == ("resnet50", "tsm")
        assert (block.temporal_offsets, block.window) == ((-2, -1, 0, 1, 2), (9, 9))
        assert (config.data.frames, config.data.resize, config.data.crop) == (8, (240, 320), 224)
        train = config.train
        assert (train.epochs, train.learning_rate, train.schedule.milestones) == (50, 0.01, (30, 40))
        assert (train.momentum, train.nesterov, train.weight_decay, train.clip_norm) == (0.9, True, 5e-4, 20.0)
