"""The recipes say what the papers say, and their headers and docs/recipes.md say what the recipes say."""

import math
import re
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import keras_stss
from keras_stss.bench.tables import find_place
from keras_stss.config import ConfigError, find_config, load_config
from keras_stss.config.files import PARTS, SHIPPED
from keras_stss.config.recipes import PAPERS, list_recipes, read_header, recipe_tables
from keras_stss.data.augment import training_view
from keras_stss.training.optimizer import learning_rate

ROOT = Path(__file__).resolve().parent.parent
NAMES = list_recipes()
CONFIGS = {name: load_config(name) for name in NAMES}
HEADERS = {name: read_header(name) for name in NAMES}
EVERY_NAME = pytest.mark.parametrize("name", NAMES)
SETS = {
    "ss_v1": ("something_v1", 86017),
    "ss_v2": ("something_v2", 168913),
    "kinetics400": ("kinetics", 236763),
    "ucf101": ("ucf101", 9537),
    "hmdb51": ("hmdb51", 3570),
    "diving48": ("diving48", 15027),
    "gym288": ("gym288", None),
    "gym99": ("gym99", None),
}
#: SELFY, appendix A; MotionSqueeze, section 4.2; STM, section 4.2: epochs, milestones (None: a cosine after 10 epochs),
#: first rate, batch of 8 and of 16 frames, sampling, resized frames.
SCHEDULES = {
    ("SELFY", "ss"): (50, (30, 40), 0.01, 64, 64, "segment", (240, 320)),
    ("SELFY", "diving48"): (30, None, 0.01, 64, 64, "segment", (240, 320)),
    ("SELFY", "gym"): (40, None, 0.01, 64, 64, "segment", (240, 320)),
    ("MotionSqueeze", "ss"): (40, (20, 30), 0.01, 48, 48, "segment", (240, 320)),
    ("MotionSqueeze", "kinetics"): (80, (40, 60), 0.01, 48, 48, "dense", (240, 320)),
    ("MotionSqueeze", "hmdb"): (35, (15, 30), 0.001, 48, 48, "dense", (240, 320)),
    ("STM", "ss"): (70, (30, 40, 60), 0.01, 64, 32, "segment", 256),
    ("STM", "kinetics"): (70, (30, 40, 60), 0.01, 64, 32, "segment", 256),
    ("STM", "ucf"): (50, (15, 30, 45), 0.001, 64, 32, "segment", 256),
    ("STM", "hmdb"): (50, (15, 30, 45), 0.001, 64, 32, "segment", 256),
}
#: The first figures after "Expected:", of SELFY's tables 1 and 2, MotionSqueeze's 1 and 2, STM's 1 to 4, 6 and 11.
SCORES = {
    "selfynet_resnet50_8f": {"ss_v1": "50.7 79.3", "ss_v2": "62.7 88.0"},
    "selfynet_tsm_resnet50_8f": {"ss_v1": "52.5 80.8", "ss_v2": "64.5 89.4", "gym288": "49.5", "gym99": "87.7"},
    "selfynet_tsm_resnet50_16f": {"ss_v1": "54.3 82.9", "ss_v2": "65.7 89.8", "diving48": "41.6"},
    "tsm_resnet50_16f": {"diving48": "38.8"},
    "tsm_resnet50_3f": {"gym288": "35.3", "gym99": "73.7"},
    "msnet_tsm_resnet50_8f": {"ss_v1": "50.9 80.3", "ss_v2": "63.0 88.4", "kinetics400": "75.0", "hmdb51": "75.8"},
    "msnet_tsm_resnet50_16f": {"ss_v1": "52.1 82.3", "ss_v2": "64.7 89.4", "kinetics400": "76.4", "hmdb51": "77.4"},
    "tsm_resnet50_8f": {
        **{"gym288": "47.9", "gym99": "86.6", "kinetics400": "73.5", "hmdb51": "71.9", "ss_v1": "47.3"},
        **{"ss_v1_twins": "48.2", "kinetics400_twins": "75.2"},
    },
    "tsn_resnet50_8f": {
        **{"ss_v1": "19.7 46.6", "kinetics400": "70.6", "ss_v1_twins": "20.9", "kinetics400_twins": "72.5"},
    },
    "stm_resnet18_8f": {"ss_v1": "40.5", "ss_v1_twins": "40.5"},
    "stm_resnet34_8f": {"ss_v1": "43.8", "ss_v1_twins": "43.8"},
    "stm_resnet50_8f": {
        **{"ss_v1_twins": "50.4 80.6", "ss_v2_twins": "62.8 89.1", "kinetics400_twins": "75.5 92.0"},
        **{"ss_v1": "49.2 79.3", "ss_v2": "", "kinetics400": "73.7"},
    },
    "stm_resnet50_16f": {
        **{"ss_v1_twins": "53.3 81.9", "ss_v2_twins": "64.9 90.7", "kinetics400_twins": "76.9 92.7"},
        **{"ucf101_twins": "97.1", "hmdb51_twins": "75.2"},
        **{"ss_v1": "50.7 80.4", "ss_v2": "64.2 89.8", "kinetics400": "73.7", "ucf101": "", "hmdb51": "72.2"},
    },
}


def paper_of(name):
    (paper,) = [paper for paper, words in PAPERS if words in HEADERS[name]["Paper"]]
    return paper.split()[0]


def parts_of(name):
    """("stm_resnet50_8f", "ss_v1", True) of "stm_resnet50_8f_ss_v1_twins"."""
    model, key = re.fullmatch(r"(\w+?_\d+f)_(\w+)", name).groups()
    return model, key.removesuffix("_twins"), key.endswith("_twins")


def test_every_row_of_the_main_tables_has_its_recipe():
    """With the score that the paper has, and where it came from."""
    assert sorted(f"{model}_{key}" for model, keys in SCORES.items() for key in keys) == NAMES
    assert list_recipes("*_gym99") == [f"{model}_gym99" for model in sorted(SCORES) if "gym99" in SCORES[model]]
    for name, header in HEADERS.items():
        model, key, _ = parts_of(name)
        expected, _, rest = header["Expected"].partition(" (")
        figures = re.findall(r"(\d+\.\d) %", expected)
        assert " ".join(figures) == SCORES[model][name.removeprefix(f"{model}_")], name
        assert "not rerun here)." in rest
        kind = "mean over the classes" if key.startswith("gym") else "top-1"
        assert not figures or f"{figures[0]} % {kind}" in expected, name


def test_a_bare_name_is_one_file():
    """Whatever folder it lies in: nothing hides another config."""
    folders = [folder for folder in SHIPPED if folder.is_relative_to(ROOT / "configs")]
    files = [path for folder in folders for path in folder.glob("*.yaml")]
    assert [folder.relative_to(ROOT / "configs").as_posix().strip(".") for folder in folders] == list(PARTS)
    assert [name for name, count in Counter(path.name for path in files).items() if count > 1] == []
    assert sorted(files) == sorted((ROOT / "configs").rglob("*.yaml"))


@EVERY_NAME
def test_a_recipe_is_what_its_name_says(name):
    """Data set, frames and training; the network is the listed model's of that name, which other tests build."""
    config, (model, key, twins) = CONFIGS[name], parts_of(name)
    assert (config.data.format, config.data.crop) == (SETS[key][0], 224)
    assert model.endswith(f"_{config.data.frames}f")
    preset = load_config(model.replace("_3f", "_8f"))  # a network knows no number of frames
    assert config.model == preset.model
    assert (config.train.twins is not None) == twins
    title = HEADERS[name]["Title"]
    assert f", {config.data.frames} frames, " in title and ("with Twins Training" in title) == twins
    assert (config.data.fold == 1) == (key in ("ucf101", "hmdb51"))
    assert config.train.best == ("mean_class" if key.startswith("gym") else "top1")


@EVERY_NAME
def test_schedule(name):
    """The paper's epochs, milestones, rate and batch; and the rate that they give in chosen epochs."""
    config, (_, key, _) = CONFIGS[name], parts_of(name)
    data, train = config.data, config.train
    row = SCHEDULES[paper_of(name), re.match(r"[a-z]+(?=\d|_)(48)?", key)[0]]
    epochs, milestones, first, batch, batch_of_16, sampling, resize = row
    assert (train.epochs, train.learning_rate) == (epochs, first)
    assert train.batch_size == (batch_of_16 if data.frames == 16 else batch)
    assert (data.sampling, data.resize) == (sampling, resize)

    def rate(epoch):
        return learning_rate(train, 100, round(100 * epoch)) / first

    if milestones is None:
        assert train.schedule.model_dump() == {**train.schedule.model_dump(), "kind": "cosine", "warmup_epochs": 10}
        assert rate(0) < 0.01 and math.isclose(rate(5), 0.5, rel_tol=0.01)
        assert rate(10) == 1.0 and math.isclose(rate((10 + epochs) / 2), 0.5, abs_tol=0.01) and rate(epochs) < 1e-6
    else:
        assert (train.schedule.milestones, train.schedule.warmup_epochs) == (milestones, 0)
        for number, milestone in enumerate(milestones):
            assert math.isclose(rate(milestone - 0.01), 0.1**number)
            assert math.isclose(rate(milestone), 0.1 ** (number + 1))
        assert rate(0) == 1.0 and math.isclose(rate(epochs - 0.01), 0.1 ** len(milestones))


@EVERY_NAME
def test_optimizer(name):
    """SGD as each paper, or its released script, has it; no decay on biases and normalisation anywhere."""
    train, (_, key, _), paper = CONFIGS[name].train, parts_of(name), paper_of(name)
    kinetics = (paper, key) == ("MotionSqueeze", "kinetics400")
    assert (train.momentum, train.nesterov, train.schedule.gamma) == (0.9, paper != "STM", 0.1)
    assert train.weight_decay == (1e-4 if kinetics else 5e-4)
    clips = {"SELFY": 20.0, "MotionSqueeze": 200.0 if key.startswith("ss") else 20.0, "STM": None}
    assert train.clip_norm == clips[paper]
    bias = 1.0 if paper == "STM" else 2.0
    head, head_bias = (5.0, 10.0) if kinetics else (1.0, bias)
    assert train.rates.model_dump() == {"bias": bias, "norm": 1.0, "block": 1.0, "head": head, "head_bias": head_bias}
    decays = train.decays.model_dump()
    assert decays == {"bias": 0.0, "norm": 0.0, "block": 1.0, "head": 1.0, "head_bias": 0.0}
    assert train.batch_norm == ("partial" if (paper, key) == ("MotionSqueeze", "hmdb51") else "train")
    assert (train.label_smoothing, train.mixup, train.cutmix, train.ema) == (0.0, 0.0, 0.0, None)


@EVERY_NAME
def test_views(name):
    """Scale jitter in fixed places, mirrored where the label allows; with Twins Training colours and gray as well."""
    data, train = CONFIGS[name].data, CONFIGS[name].train
    augment = data.augment.model_dump()
    jitter, gray = augment.pop("color_jitter"), augment.pop("grayscale")
    assert (data.flip, data.scales) == (True, (1.0, 0.875, 0.75, 0.66))
    none = {"short_sides": None, "area": None, "erasing": 0.0, "rand_augment": {"ops": 0, "magnitude": 7.0}}
    assert augment == {"crop": "multi_scale_corner", **none}
    strengths = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "probability": 0.8}
    if train.twins:
        assert (train.twins.weight, train.twins.beta) == (0.01, 0.0039)
        assert jitter == strengths and gray == 0.2
    else:
        assert gray == 0.0 and not any(jitter[change] for change in ("brightness", "contrast", "saturation", "hue"))


def test_twins_views_differ_in_place_and_in_colour():
    """Both views of a pair are drawn anew, gray now and then, mirrored now and then; the frames of a clip alike."""
    data = load_config("stm_resnet50_8f_ss_v1_twins", ["data.resize=40", "data.crop=32"]).data
    ramp = np.linspace(60, 200, 56)[None, None, :, None] * np.array([1.0, 0.8, 0.6])
    frames = tf.constant(np.broadcast_to(ramp, (2, 40, 56, 3)).astype("uint8"))
    view = tf.function(lambda seed: training_view(frames, seed, data, tf.constant(True)))
    views = np.stack([view(tf.constant([0, number])) for number in range(60)]).astype(float)
    gray = (views[..., 0] == views[..., 2]).all(axis=(1, 2, 3))
    mirrored = views[:, 0, 0, 0, 0] > views[:, 0, 0, -1, 0]
    assert 4 <= gray.sum() <= 24 and 15 <= mirrored.sum() <= 45
    assert (np.abs(views[:, 0] - views[:, 1]).max(axis=(1, 2, 3)) == 0).all()
    pairs = views[0::2], views[1::2]
    assert (np.abs(pairs[0] - pairs[1]).max(axis=(1, 2, 3, 4)) > 0).mean() > 0.9


@EVERY_NAME
def test_the_header_and_its_command(name):
    """The command is this recipe's and starts from weights that fit; the steps are what clips and epochs make."""
    header, config, key = HEADERS[name], CONFIGS[name], parts_of(name)[1]
    assert list(header)[:4] == ["Title", "Paper", "Expected", "Start"]
    assert list(header)[-2:] == ["Duration", "Command"]
    program, script, option, file_name, *overrides = shlex.split(header["Command"])
    assert (program, script, option, file_name) == ("python", "train.py", "--config", f"{name}.yaml")
    given = load_config(name, overrides)
    assert given.data.root == "FOLDER"
    if key in ("ucf101", "hmdb51"):
        before = given.model.init.removeprefix("runs/")  # a run's folder is called as its config
        assert CONFIGS[before].model == config.model and CONFIGS[before].data.frames == config.data.frames
        assert CONFIGS[before].train.twins == config.train.twins and before in header["Start"]
        assert (paper_of(before), parts_of(before)[1]) == (paper_of(name), "kinetics400")
        assert given.train.run == f"runs/{name}-1"
    else:
        assert given.model.pretrained == f"{config.model.backbone}.pth" and "ImageNet weights" in header["Start"]
    epochs, batch, clips = config.train.epochs, config.train.batch_size, SETS[key][1]
    assert f"{epochs} epochs" in header["Duration"] and f"of {batch} clips" in header["Duration"]
    if clips:
        found = re.search(r"([\d.]+)k clips x \d+ epochs: about ([\d.]+)k steps", header["Duration"])
        steps = math.ceil(clips / batch) * epochs
        assert math.isclose(float(found[1]) * 1000, clips, rel_tol=0.02)
        assert math.isclose(float(found[2]) * 1000, steps, rel_tol=0.02)


def test_one_recipe_under_two_names():
    """ss_v1 and ss_v2 are SELFYNet-TSM's, and the listed models hold their paper's for Something-Something V1."""
    for key in ("ss_v1", "ss_v2"):
        recipe = f"selfynet_tsm_resnet50_8f_{key}"
        assert load_config(key) == CONFIGS[recipe]
        other = {**read_header(key), "Command": HEADERS[recipe]["Command"]}
        assert other == HEADERS[recipe] and f"--config {key}.yaml " in read_header(key)["Command"]
    same = [model for model in SCORES if model.startswith(("selfynet", "msnet", "stm")) and "ss_v1" in SCORES[model]]
    assert len(same) == 9
    for model in same:
        assert load_config(model) == CONFIGS[f"{model}_ss_v1"], model
    for model in keras_stss.list_models():
        assert load_config(model).data.augment.crop == "multi_scale_corner"


def test_the_page():
    """Its tables are those of the files, and its example runs."""
    page = ROOT / "docs" / "recipes.md"
    before, after = find_place(page, "recipes")
    text = page.read_text(encoding="utf-8")
    assert text == before + recipe_tables() + after, "renew it: python benchmarks/recipe_tables.py"
    assert sum(text.count(f"`{name}.yaml ") for name in NAMES) == len(NAMES)
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, page.name, "exec"), {})  # the page's own lines, as a reader would run them


def test_a_missing_name_is_answered_in_a_line(tmp_path, monkeypatch):
    """With the nearest of all folders, and without the names of a hundred files."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find_config("stm_resnet50_8f_ss_v1_twin")
    assert "Did you mean stm_resnet50_8f_ss_v1_twins.yaml?" in str(caught.value)
    assert "ss_v1.yaml" in str(caught.value) and len(str(caught.value)) < 400
