"""Every model of the papers that is listed: it is what its name says, and it can be run, trained, saved and loaded."""

import re
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
from test_models import clips

import keras_stss
from keras_stss.config import STAGES, find_config, load_config, parse_config
from keras_stss.models import build_model

NAMES = keras_stss.list_models()
EVERY_NAME = pytest.mark.parametrize("name", NAMES)
#: Presets for 8 and 16 frames are often the same network, which knows no number of frames: one name of each is enough.
NETWORKS = {load_config(name).model.model_dump_json(): name for name in NAMES}
EVERY_NETWORK = pytest.mark.parametrize("name", sorted(NETWORKS.values()))
PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
NAME = "selfynet_tsm_resnet18_8f"
VARIANTS = re.findall(r"^\| [A-Z]\w+ \d.*? \| `(.+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
CLIP = (2, 4, 32, 32)  # enough for every layer to matter
CLASSES, WIDTH = 3, 16


def small(name):
    """The preset with fewer channels, in all its depth but where it is two presets at once."""
    keras.utils.set_random_seed(0)
    values = load_config(name).model_dump()
    members = values["model"].get("ensemble", ())
    for network in members or (values["model"],):
        network.update(width=WIDTH, **({"backbone": "resnet10"} if members else {}))
    return build_model(parse_config(values), classes=CLASSES)


def enliven(model):
    """As after some training: no scale at zero, which keeps the gradient from all before it, and a head with a say."""
    random = np.random.default_rng(0)
    for weight in model.trainable_weights:
        if weight.path.endswith("gamma"):
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
        if weight.path.endswith("logits/kernel"):
            weight.assign(random.normal(size=weight.shape) / np.sqrt(weight.shape[0]))
    return model


def test_names():
    assert len(NAMES) == 30 and sorted(set(NAMES)) == NAMES
    assert keras_stss.list_models("selfynet_tsm_resnet50_*") == [
        "selfynet_tsm_resnet50_16f",
        "selfynet_tsm_resnet50_8f",
        "selfynet_tsm_resnet50_en",
    ]
    assert keras_stss.list_models("stm_resnet[13]?_8f") == ["stm_resnet18_8f", "stm_resnet34_8f"]
    assert keras_stss.list_models("SELFYNET*") == keras_stss.list_models("demo") == []


@EVERY_NAME
def test_a_preset_is_what_its_name_says(name):
    """Backbone, temporal modelling, blocks and frames are in the name, and only there where they are in the config."""
    config = load_config(name)
    networks = config.model.ensemble or (config.model,)
    assert name.endswith("_en" if config.model.ensemble else f"_{config.data.frames}f")
    frames = [network.frames for network in config.model.ensemble] or [config.data.frames]
    for network, count in zip(networks, frames):
        assert network.backbone in name and network.backbone in STAGES
        blocks = {block for chosen in network.insert.values() for block in chosen.named()}
        assert blocks <= {"selfy", "motion_squeeze", "non_local", "cp", "correlation", "local_attention"}
        assert ("selfy" in blocks, "motion_squeeze" in blocks) == ("selfynet" in name, "msnet" in name)
        assert all(block in name for block in blocks - {"selfy", "motion_squeeze"})
        expected = "stm" if name.startswith("stm") else "3d" if "i3d" in name else "tsm" if "tsm" in name else "tsn"
        assert network.temporal == expected
        for chosen in network.insert.values():
            if chosen.selfy:  # SELFY, section 4.1
                assert (len(chosen.selfy.temporal_offsets), *chosen.selfy.window) == (5 if count == 8 else 9, 9, 9)
    assert (config.data.format, config.data.crop) == ("something_v1", 224)
    assert config.model.ensemble or config.model.pretrained is None


@pytest.mark.parametrize(
    ("pattern", "recipe"),
    [
        ("selfynet*", (50, (30, 40), 64, True, (240, 320))),
        ("msnet*", (40, (20, 30), 48, True, (240, 320))),
        ("stm*_8f", (70, (30, 40, 60), 64, False, 256)),
        ("stm*_16f", (70, (30, 40, 60), 32, False, 256)),
    ],
)
def test_the_papers_recipes(pattern, recipe):
    """SELFY, appendix A; MotionSqueeze, section 4.2; STM, section 4.2."""
    for name in keras_stss.list_models(pattern):
        data, train = load_config(name).data, load_config(name).train
        own = (train.epochs, train.schedule.milestones, train.batch_size, train.nesterov, data.resize)
        assert own == recipe
        assert (train.learning_rate, train.schedule.gamma, train.momentum, train.weight_decay) == (0.01, 0.1, 0.9, 5e-4)


@EVERY_NAME
def test_a_preset_has_its_header(name):
    lines = find_config(name).read_text(encoding="utf-8").splitlines()
    for word in ("Paper:", "Expected:", "Cost:", "Duration:", "Command:"):
        assert any(line.startswith(f"# {word}") for line in lines), word
    commands = [line for line in lines if "python train.py --config" in line]
    alone = [name] if not load_config(name).model.ensemble else [f"{name[:-2]}8f", f"{name[:-2]}16f"]
    assert [line.split("--config ")[1].split()[0] for line in commands] == [f"{each}.yaml" for each in alone]


def test_the_page_lists_them_all():
    """docs/models.md has a row for each."""
    rows = re.findall(r"^\| `(\w+_(?:8f|16f|en))` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == NAMES


def test_the_pages_examples_run(tmp_path, monkeypatch, capsys):
    """Those that need no trained model: building, one's own model, looking inside."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    runnable = [code for code in blocks if "members" not in code]
    assert len(runnable) == 3
    for code in runnable:
        names = {}
        exec(compile(code, PAGE.name, "exec"), names)  # the page's own lines, as a reader would run them
        assert names["model"].output_shape[-1] in (5, 48)
    assert "res3_selfy/displacement (1, 8, 7, 7, 5, 2)" in capsys.readouterr().out


@pytest.mark.parametrize("overrides", VARIANTS)
def test_the_pages_variants_build(overrides):
    """The table of overrides, as a shell would pass them on."""
    name = "stm_resnet18_8f" if "stm" in overrides else "msnet_tsm_resnet18_8f" if "squeeze" in overrides else NAME
    config = load_config(name, ["model.width=8", *shlex.split(overrides)])
    assert config.model != load_config(name).model
    assert build_model(config, classes=CLASSES)(clips(*CLIP)).shape == (CLIP[0], CLASSES)


@EVERY_NETWORK
def test_every_weight_learns(name):
    """One compiled step at reduced width: a finite loss, and a gradient for every trainable weight."""
    model = enliven(small(name))
    optimizer = keras.optimizers.SGD(1.0, momentum=0.9)
    optimizer.build(model.trainable_variables)  # or the step would be compiled a second time
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert np.isfinite(model.train_on_batch(clips(*CLIP), np.arange(CLIP[0])))
    # After its first step the optimizer's momentum is the gradient itself, but for the sign.
    gradients = dict(zip((weight.path for weight in model.trainable_weights), optimizer.momentums))
    assert len(gradients) == len(model.trainable_weights)
    assert [path for path, gradient in gradients.items() if not np.isfinite(gradient).all()] == []
    assert [path for path, gradient in gradients.items() if not np.any(gradient)] == []


@EVERY_NETWORK
def test_full_size_in_half_precision(name, tmp_path):
    """By its bare name: float32 logits of 174 classes without NaN, the same from a file, and features."""
    model = enliven(build_model(name, **{"train.precision": "mixed_float16"}))
    logits = model(clips(*CLIP))
    assert logits.dtype == "float32" and logits.shape == (CLIP[0], 174)
    assert np.isfinite(logits).all() and np.ptp(logits, axis=0).min() > 0
    model.save(tmp_path / "best.keras")
    np.testing.assert_array_equal(keras_stss.load_model(tmp_path)(clips(*CLIP)), logits)
    features = set(keras_stss.feature_extractor(model).output)
    config = load_config(name).model
    for number, network in enumerate(config.ensemble or (config,)):
        member = f"member{number}_" if config.ensemble else ""
        assert {f"{member}{stage}" for stage in STAGES[network.backbone]} <= features
        for stage, chosen in network.insert.items():
            if block := {"selfy", "motion_squeeze"} & set(chosen.named()):
                assert f"{member}{stage}_{block.pop()}/displacement" in features
