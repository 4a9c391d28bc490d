"""Whole models: sizes, temporal behaviour, building from a config, files and transfer of weights."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

import keras_stss
from keras_stss.config import ConfigError, load_config
from keras_stss.layers import TemporalShift
from keras_stss.models import build_model, load_model, transfer_weights
from keras_stss.models.resnet import STAGES, resnet

SELFY = {"channels": 4, "window": [3, 3], "extraction_channels": [4, 6], "integration_channels": [6]}
ROOT = Path(__file__).resolve().parent.parent


def write_config(folder, **model):
    values = {
        "data": {"format": "clips", "root": ".", "annotations": "a.csv", "frames": 4, "resize": 40, "crop": 32},
        "model": {"backbone": "resnet10", "width": 8, **model},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


def clips(batch=2, frames=4, height=32, width=32, seed=0):
    """Blocks of colour that move, with noise, as bytes."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 200, (batch, frames, height // 8 + 1, width // 8 + 1, 3), np.uint8)
    blocks = blocks.repeat(8, axis=2).repeat(8, axis=3)[:, :, :height, :width]
    return blocks + rng.integers(0, 56, blocks.shape, np.uint8)


def enliven(model):
    """A head that makes differences visible: it starts with weights of a thousandth."""
    head = model.get_layer("logits").kernel
    head.assign(np.random.default_rng(0).normal(size=head.shape))
    return model


def count(weights):
    return sum(int(np.prod(weight.shape)) for weight in weights)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 11_176_512), ("resnet34", 21_284_672), ("resnet50", 23_508_032), ("resnet101", 42_500_160)],
)
def test_backbone_has_torchvisions_size(name, parameters):
    """Trainable parameters without the head, and the stages' shapes."""
    frames = keras.Input((8, 224, 192, 3))
    stages = resnet(frames, name)
    assert count(keras.Model(frames, stages["res5"]).trainable_weights) == parameters
    wide = 4 if name in ("resnet50", "resnet101") else 1
    assert {stage: tensor.shape[1:] for stage, tensor in stages.items()} == {
        "pool1": (8, 56, 48, 64),
        "res2": (8, 56, 48, 64 * wide),
        "res3": (8, 28, 24, 128 * wide),
        "res4": (8, 14, 12, 256 * wide),
        "res5": (8, 7, 6, 512 * wide),
    }


def test_backbone_refuses():
    frames = keras.Input((None, None, None, 3))
    with pytest.raises(ValueError, match="Received: name='resnet19'"):
        resnet(frames, "resnet19")
    with pytest.raises(ValueError, match=r"Received: insert=\['res6'\]"):
        resnet(frames, "resnet10", insert={"res6": []})


def test_tsm_is_tsn_with_a_shift(config):
    """The same layers and weights but for a shift before the first convolution of every residual branch."""
    tsn, tsm = build_model(config, classes=3, temporal="tsn"), build_model(config, classes=3, temporal="tsm")
    shifts = [layer for layer in tsm.layers if isinstance(layer, TemporalShift)]
    assert [layer.name for layer in shifts] == ["res2_0_shift", "res3_0_shift", "res4_0_shift", "res5_0_shift"]
    assert {layer.name for layer in tsm.layers} - {layer.name for layer in shifts} == {x.name for x in tsn.layers}
    enliven(tsn)
    assert transfer_weights(tsn, tsm)[1] == []
    # More parts than channels: nothing is shifted.
    unshifted = build_model(config, classes=3, temporal="tsm", shift_divisor=1000)
    assert transfer_weights(tsn, unshifted)[1] == []
    frames = clips()
    np.testing.assert_array_equal(unshifted(frames), tsn(frames))
    assert np.abs(tsm(frames) - tsn(frames)).max() > 1e-2


@pytest.mark.parametrize(
    ("temporal", "insert", "sees_order"),
    [("tsn", {}, False), ("tsm", {}, True), ("tsn", {"res3": {"selfy": SELFY}}, True)],
)
def test_order_of_frames(config, temporal, insert, sees_order):
    model = enliven(build_model(config, classes=3, temporal=temporal, insert=insert))
    frames = clips()
    difference = np.abs(model(frames[:, [2, 0, 3, 1]]) - model(frames)).max()
    assert difference > 1e-3 if sees_order else difference < 1e-5


@pytest.mark.parametrize("stages", [*((stage,) for stage in STAGES), ("res2", "res3", "res4")], ids="-".join)
def test_insert(tmp_path, stages):
    """From a YAML file, at every stage, one and several: any B, T, H and W."""
    path = write_config(tmp_path, insert={stage: {"selfy": SELFY} for stage in stages})
    model = build_model(path, classes=3)
    assert [layer.name for layer in model.layers if "selfy" in layer.name] == [f"{stage}_selfy" for stage in stages]
    assert model.input_shape == (None, None, None, None, 3)
    assert model.output_shape == (None, 3)
    for size in [(2, 4, 32, 32), (1, 1, 45, 33), (1, 3, 7, 64)]:
        logits = model(clips(*size))
        assert logits.shape == (size[0], 3)
        assert np.isfinite(logits).all()


def test_insert_by_bare_name_takes_the_papers_numbers(config):
    block = build_model(config, classes=3, insert={"res3": "selfy"}).get_layer("res3_selfy")
    assert (block.temporal_offsets, block.window, block.channels) == ((-2, -1, 0, 1, 2), (9, 9), 128)


def test_overrides(config):
    assert build_model(config, classes=3).name == "tsm_resnet10"
    model = build_model(config, backbone="resnet18", classes=5, temporal="tsn", dropout=0.0)
    assert model.name == "tsn_resnet18"
    assert model.output_shape == (None, 5)
    assert "res2_1_add" in {layer.name for layer in model.layers}
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in model.layers)
    dotted = {"model.width": 4, "train.precision": "mixed_bfloat16", "model.insert.res4.selfy.channels": 6}
    model = build_model(config, 5, **dotted)
    assert model.get_layer("res2_0_add").output.shape[-1] == 4
    assert model.get_layer("res4_selfy").channels == 6
    assert model.get_layer("res4_selfy").compute_dtype == "bfloat16"
    assert load_config(config).model.width == 8


def test_classes(config, tmp_path):
    """Known for Something-Something; to be named for one's own clips."""
    with pytest.raises(ConfigError, match="pass classes"):
        build_model(config)
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    values["data"] = {"format": "something_v2", "root": "."}
    (tmp_path / "ss.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert keras_stss.build_model(str(tmp_path / "ss.yaml")).output_shape == (None, 174)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"backbon": "resnet18"}, "Did you mean backbone"),
        ({"train.precison": "float32"}, "Did you mean precision"),
        ({"backbone": "resnet19"}, "resnet19"),
        ({"insert": {"res6": "selfy"}}, "unknown stage"),
        ({"insert": {"res3": "selfish"}}, "selfy"),
        ({"insert": {"res3": {"selfy": {"window": (4, 4)}}}}, "odd"),
        ({"width": 0}, "model.width"),
        ({"model.width.first": 8}, "model.width"),
        ({"data.train.first": 8}, "data.train"),
    ],
)
def test_overrides_refused(config, overrides, says):
    with pytest.raises(ConfigError, match=says):
        build_model(config, classes=3, **overrides)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_precision(config, precision):
    """Half precision inside, float32 weights and logits; the caller's policy is left as it was."""
    before = keras.config.dtype_policy().name
    model = build_model(config, classes=3, insert={"res3": {"selfy": SELFY}}, **{"train.precision": precision})
    assert keras.config.dtype_policy().name == before
    compute = keras.DTypePolicy(precision).compute_dtype
    for name in ("normalize", "conv1", "res3_selfy", "res5_0_conv2"):
        assert model.get_layer(name).output.dtype == compute
    assert {weight.dtype for weight in model.trainable_weights} == {"float32"}
    assert model.inputs[0].dtype == "uint8"
    logits = enliven(model)(clips())
    assert logits.dtype == "float32"
    reference = build_model(config, classes=3, insert={"res3": {"selfy": SELFY}})
    assert transfer_weights(model, reference)[1] == []
    tolerance = {"float32": 1e-6, "mixed_float16": 2e-2, "mixed_bfloat16": 2e-1}[precision]
    np.testing.assert_allclose(logits, reference(clips()), atol=tolerance * np.abs(reference(clips())).max())


def test_policy_survives_an_error(config):
    before = keras.config.dtype_policy().name
    with pytest.raises(ValueError, match=r"-1"):
        build_model(config, classes=-1, **{"train.precision": "mixed_float16"})
    assert keras.config.dtype_policy().name == before


def test_bytes_and_numbers_alike(config):
    """Pixels are normalised inside: bytes in, and the same numbers as floats give the same logits."""
    model = enliven(build_model(config, classes=3))
    np.testing.assert_array_equal(model(clips()), model(clips().astype("float32")))


def test_the_model_learns(config):
    """Every trainable weight moves in one step of fit."""
    model = build_model(config, classes=3, insert={"res3": {"selfy": SELFY}})
    enliven(model)
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [weight.numpy() for weight in model.trainable_weights]
    history = model.fit(clips(3, height=64, width=64), np.arange(3), batch_size=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    still = [w.path for w, old in zip(model.trainable_weights, before) if np.array_equal(w.numpy(), old)]
    assert still == []


#: argv is a model, inputs and a file for the logits; PREPARE stands for the line under test.
LOADER = """
PREPARE
import sys
import numpy as np
model = keras.saving.load_model(sys.argv[1])
np.save(sys.argv[3], model(np.load(sys.argv[2])))
"""


def load_apart(folder, prepare):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    arguments = [str(folder / name) for name in ("model.keras", "clips.npy", "logits.npy")]
    code = LOADER.replace("PREPARE", prepare)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, cwd=folder
    )


@pytest.mark.parametrize(
    "prepare", ["import keras_stss, keras", "import keras, keras_stss", "import keras_stss, tensorflow, keras"]
)
def test_file_in_a_fresh_process(tmp_path, prepare):
    """Keras' own loader needs nothing but `import keras_stss`, before or after Keras, and no custom_objects."""
    model = enliven(build_model(write_config(tmp_path), classes=3, insert={"res3": {"selfy": SELFY}}))
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "clips.npy", clips())
    result = load_apart(tmp_path, prepare)
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), model(clips()))


def test_load_model(tmp_path):
    model = enliven(build_model(write_config(tmp_path), classes=3, insert={"res3": {"selfy": SELFY}}))
    model.save(tmp_path / "best.keras")
    for place in (tmp_path, tmp_path / "best.keras", str(tmp_path)):
        loaded = keras_stss.load_model(place)
        np.testing.assert_array_equal(loaded(clips(1, 3, 40, 33)), model(clips(1, 3, 40, 33)))
    # Names survive the file, so that a loaded model still lends its weights.
    assert transfer_weights(loaded, build_model(tmp_path / "small.yaml", 3, insert={"res3": {"selfy": SELFY}}))[1] == []


def test_load_model_refuses(tmp_path):
    with pytest.raises(ConfigError, match=r"no run directory or \.keras file at .*nowhere"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"holds no best\.keras"):
        load_model(tmp_path)
    (tmp_path / "best.keras").write_bytes(b"no model at all")
    with pytest.raises(ConfigError, match=r"best\.keras cannot be loaded"):
        load_model(tmp_path)
    with zipfile.ZipFile(tmp_path / "empty.keras", "w"):
        pass
    with pytest.raises(ConfigError, match=r"empty\.keras cannot be loaded"):
        load_model(tmp_path / "empty.keras")


def test_transfer_keeps_another_head(config):
    source = enliven(build_model(config, classes=3))
    target = build_model(config, classes=4, insert={"res3": {"selfy": SELFY}})
    before = {weight.path: weight.numpy() for weight in target.weights}
    copied, kept = transfer_weights(source, target)
    selfy = [path for path in before if path.startswith("res3_selfy/")]
    assert set(kept) == {"logits/kernel", "logits/bias", *selfy}
    assert copied == len(source.weights) - 2
    theirs = {weight.path: weight.numpy() for weight in source.weights}
    for weight in target.weights:
        expected = before[weight.path] if weight.path in kept else theirs[weight.path]
        np.testing.assert_array_equal(weight.numpy(), expected)


def test_transfer_of_nothing(config):
    source = build_model(config, classes=3, width=4)
    with pytest.raises(ConfigError, match="no weight fits"):
        transfer_weights(source, build_model(config, classes=5, width=8))


@pytest.mark.parametrize(
    ("insert", "says"),
    [
        ({"correlation": {"groups": 7}}, "res3.correlation: groups must divide the 4 channels"),
        ({"local_attention": {"channels": 3}}, "res3.local_attention: channels must be positive and even"),
    ],
)
def test_a_block_that_does_not_fit_is_named(tmp_path, insert, says):
    """As one line of what to mend; the same classes raise ValueError in anyone's own model."""
    path = write_config(tmp_path, insert={"res3": insert})
    with pytest.raises(ConfigError, match=re.escape(f"model.insert.{says}")):
        build_model(path, classes=3)
