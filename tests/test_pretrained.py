"""Weights of other code: readers, names and layouts, reports, and the logits of the originals."""

import json
from pathlib import Path

import h5py
import keras
import numpy as np
import originals
import pytest
import yaml

from keras_stss.cli import main
from keras_stss.config import ConfigError
from keras_stss.layers import TemporalShift
from keras_stss.models import build_model, load_model, load_pretrained
from keras_stss.models.weights.convert import convert
from keras_stss.models.weights.names import describe
from keras_stss.models.weights.pretrained import inspect
from keras_stss.models.weights.tensor_files import read_tensors

GOLDEN = Path(__file__).resolve().parent / "golden"
WIDTH, CLASSES = 8, 5


def small_names(prefix="", head="fc", wrap=False, classes=CLASSES, width=WIDTH):
    """Names and shapes of a ResNet of one basic block a stage (resnet10), as torchvision would call them."""
    names = {"conv1.weight": (width, 3, 7, 7), **bn_names("bn1", width)}
    inside = width
    for stage in range(4):
        block, outside = f"layer{stage + 1}.0", width * 2**stage
        first = f"{block}.conv1.net" if wrap else f"{block}.conv1"
        names |= {f"{first}.weight": (outside, inside, 3, 3), **bn_names(f"{block}.bn1", outside)}
        names |= {f"{block}.conv2.weight": (outside, outside, 3, 3), **bn_names(f"{block}.bn2", outside)}
        if stage:
            names |= {f"{block}.downsample.0.weight": (outside, inside, 1, 1)}
            names |= bn_names(f"{block}.downsample.1", outside)
        inside = outside
    names = {prefix + name: shape for name, shape in names.items()}
    return names | {f"{head}.weight": (classes, inside), f"{head}.bias": (classes,)}


def bn_names(layer, size):
    return {f"{layer}.{leaf}": (size,) for leaf in originals.BN} | {f"{layer}.num_batches_tracked": ()}


def tsm_names(**options):
    return small_names("module.base_model.", "module.new_fc", wrap=True, **options)


@pytest.fixture
def weights(tmp_path):
    """Function (names) → path of a safetensors file with seeded values."""
    return lambda names: originals.write_safetensors(tmp_path / "weights.safetensors", originals.seeded(names))


def small_config(folder, **model):
    values = {
        "data": {"format": "clips", "root": ".", "annotations": "a.csv", "frames": 5, "resize": 40, "crop": 32},
        "model": {"backbone": "resnet10", "width": WIDTH, **model},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def small_model(folder, classes=CLASSES, **model):
    return build_model(small_config(folder, **model), classes=classes)


def values_of(model):
    pairs = ((variable.path, keras.ops.convert_to_numpy(variable)) for variable in model.variables)
    return {path: value for path, value in pairs if "seed_generator" not in path}


def assert_close(found, expected, tolerance=1e-4):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# The originals.


@pytest.mark.parametrize("name", ["tsm_r50", "selfynet_tsm_r18", "selfynet_tsm_r50", "msnet_tsm_r18"])
def test_logits_of_the_original(tmp_path, name):
    """A checkpoint with the authors' names, whole and strict: the PyTorch original's logits."""
    state = originals.seeded(originals.checkpoint_names(name))
    path = originals.write_safetensors(tmp_path / "weights.safetensors", state)
    origin = inspect(path)
    assert origin.classes == 174
    section = origin.model()
    config = {"data": {"format": "something_v1", "root": "."}, "model": {**section, "pretrained": str(path)}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(config))
    model = build_model(tmp_path / "model.yaml", pretrained_strict=True)
    assert_close(model(originals.clips()), originals.recorded(name))


@pytest.mark.parametrize("name", originals.MODELS)
def test_recorded_logits(name):
    """The recorded logits are those of the PyTorch originals, whose state dicts have exactly the authors' names."""
    pytest.importorskip("torch")
    state = originals.seeded(originals.checkpoint_names(name))
    assert_close(originals.run(name, state, originals.clips()), originals.recorded(name), 1e-5)


def test_originals_differ():
    """The motion blocks and the clips matter to the recorded logits far more than the tolerance."""
    logits = {name: originals.recorded(name) for name in originals.MODELS}
    for name, found in logits.items():
        plain = logits[f"tsm_{name[-3:]}"]
        assert name.startswith("tsm") or np.abs(plain - found).max() > 1e-2 * np.abs(plain).max()
        assert np.abs(found[0] - found[1]).max() > 1e-2 * np.abs(found).max()


# What goes where.


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "model.module."])
def test_image_weights(tmp_path, weights, prefix):
    """torchvision's names, wrapped or not, into a TSM with another head and a motion block."""
    path = weights(small_names(prefix, f"{prefix}fc", classes=10))
    selfy = {"channels": 4, "window": [3, 3], "extraction_channels": [4, 6], "integration_channels": [6]}
    model = small_model(tmp_path, insert={"res3": {"selfy": selfy}})
    before = values_of(model)
    report = load_pretrained(model, path)
    assert len(report.matched) == 60
    assert report.matched["layer2.0.downsample.1.running_var"] == "res3_0_shortcut/bn/moving_variance"
    heads = {name: reason for name, reason in report.skipped.items() if name.startswith("fc")}
    assert heads == dict.fromkeys(("fc.weight", "fc.bias"), f"the head has 10 classes there, {CLASSES} here")
    assert report.unmatched_source == report.mismatched == report.differences == []
    assert set(report.unmatched_target) == {path for path in before if path.startswith("res3_selfy")}
    kept = {*report.unmatched_target, "logits/kernel", "logits/bias"}
    state, after = read_tensors(path)[1], values_of(model)
    kernel = state[f"{prefix}layer3.0.conv1.weight"]
    np.testing.assert_array_equal(after["res4_0_conv1/conv/kernel"], kernel.transpose(2, 3, 1, 0))
    for name in before:
        assert np.array_equal(before[name], after[name]) == (name in kept), name
    assert "12 skipped: a counter, without effect on the outputs" in report.lines()
    assert any("2 skipped: the head has 10 classes" in line for line in report.lines())
    assert report.left_random == []


def test_a_backbone_in_part_is_warned_of(tmp_path, weights, caplog):
    """What a motion module of STM lacks is no news; what the ResNet lacks is."""
    names = small_names()
    del names["layer3.0.conv2.weight"]
    report = load_pretrained(small_model(tmp_path, temporal="stm"), weights(names))
    assert report.left_random == ["res4_0_conv2/conv/kernel"]
    assert {path.split("/")[0] for path in report.unmatched_target} >= {"res2_0_temporal", "res2_0_cmm"}
    report.log()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "parts of the backbone, which stay as they were: res4_0_conv2/conv/kernel" in warning


def test_head_of_as_many_classes(tmp_path, weights):
    report = load_pretrained(small_model(tmp_path, temporal="tsn"), weights(small_names()), strict=True)
    assert report.matched["fc.weight"] == "logits/kernel"
    assert report.unmatched_target == []


@pytest.mark.parametrize(
    ("names", "model", "says"),
    [
        (small_names(classes=7), {}, "head has 7 classes there, 5 here"),
        (small_names() | {"layer1.0.se.fc1.weight": (2, 8)}, {}, r"not in the model: layer1\.0\.se\.fc1\.weight"),
        (small_names(), {"insert": {"res3": {"selfy": {"channels": 4}}}}, "not in the file: res3_selfy/"),
        (tsm_names(), {"temporal": "tsn"}, r"shifts in 4 residual blocks, the model in 0: set model\.temporal=tsm"),
        (tsm_names(), {"shift_divisor": 4}, r"set model\.shift_divisor=8"),
        (small_names("base_model.", "new_fc"), {}, r"shifts in 0 .* the model in 4: set model\.temporal=tsn"),
    ],
    ids=["head", "left over", "no such block", "tsn", "divisor", "tsm"],
)
def test_strict(tmp_path, weights, names, model, says):
    """What a loose load reports, a strict one refuses, and then leaves the model as it was."""
    model = small_model(tmp_path, **model)
    path, before = weights(names), values_of(model)
    with pytest.raises(ConfigError, match=says):
        load_pretrained(model, path, strict=True)
    assert all(np.array_equal(value, before[name]) for name, value in values_of(model).items())
    report = load_pretrained(model, path)
    assert len(report.matched) >= 60
    assert len(report.faults()) >= 1


def test_shapes_and_backbones_that_differ(tmp_path, weights):
    path = weights(small_names(width=16))
    model = small_model(tmp_path)
    before = values_of(model)
    with pytest.raises(
        ConfigError, match=r"conv1\.weight \(16, 3, 7, 7\) does not fit conv1/conv/kernel \(7, 7, 3, 8\)"
    ):
        load_pretrained(model, path)
    assert all(np.array_equal(value, before[name]) for name, value in values_of(model).items())
    with pytest.raises(ConfigError, match=r"holds a resnet10, the model is a resnet18: set model\.backbone=resnet10"):
        load_pretrained(small_model(tmp_path, backbone="resnet18"), path)


def test_motion_block_of_other_settings(tmp_path):
    """A released block into the paper's form: listed, left as it was, and strict refuses it."""
    names = originals.checkpoint_names("selfynet_tsm_r18")
    path = originals.write_safetensors(tmp_path / "selfy.safetensors", originals.seeded(names))
    config = small_config(tmp_path, backbone="resnet18", width=64, insert={"res3": {"selfy": {"window": [7, 7]}}})
    model = build_model(config, classes=400)
    with pytest.raises(ConfigError) as refused:
        load_pretrained(model, path, strict=True)
    for line in (
        "has window=[9, 9], the model's (7, 7): set model.insert.res3.selfy.window=[9, 9]",
        "has variant=released, the model's paper: set model.insert.res3.selfy.variant=released",
        "(64, 320, 1, 3, 3) does not fit res3_selfy/integrate/conv3/conv/kernel (3, 3, 64, 64)",
        "not in the file: res3_selfy/integrate/fuse/conv/kernel",
        "the head has 174 classes there, 400 here",
    ):
        assert line in str(refused.value)
    report = load_pretrained(model, path)
    assert report.mismatched and report.differences
    assert "res3_selfy/reduce/conv/kernel" in report.matched.values()


def test_shift_the_other_way(tmp_path, weights):
    """A shift from the past first, run forwards, is a shift from the future first, run backwards."""
    path, frames = weights(tsm_names()), originals.clips()
    forwards, other = small_model(tmp_path), small_model(tmp_path)
    load_pretrained(forwards, path)
    load_pretrained(other, path, past_first=True)
    assert_close(other(frames), forwards(frames[:, ::-1]), 1e-5)
    assert np.abs(other(frames) - forwards(frames)).max() > 1e-2 * np.abs(forwards(frames)).max()


def test_turned_shift_of_an_image_model(tmp_path, weights):
    with pytest.raises(ConfigError, match="holds no model with a temporal shift"):
        load_pretrained(small_model(tmp_path), weights(small_names()), past_first=True)


def test_sixteen_frames():
    """The number of temporal offsets is read from the shapes."""
    names = originals.checkpoint_names("selfynet_tsm_r18")
    names = {name.removeprefix("module.base_model.").removeprefix("module."): shape for name, shape in names.items()}
    names["selfy.stss_integration.conv3_fuse.1.weight"] = (64, 9 * 64, 1, 3, 3)
    origin = describe("torch", {name: np.broadcast_to(np.float32(0), shape) for name, shape in names.items()}, "a.pth")
    block = origin.model()["insert"]["res3"]["selfy"]
    assert block["temporal_offsets"] == [-4, -3, -2, -1, 0, 1, 2, 3, 4]
    assert (block["variant"], block["window"]) == ("released", [9, 9])


def test_shift_in_every_second_block():
    """TSM's ResNet-101: the names tell, and the model can."""
    names = {"conv1.weight": 4, "new_fc.weight": 2}
    for stage, depth in enumerate((3, 4, 23, 3), 1):
        for block in range(depth):
            net = "" if block % 2 else ".net"
            names |= {f"layer{stage}.{block}.{layer}.weight": 4 for layer in (f"conv1{net}", "conv2", "conv3")}
    origin = describe("torch", {name: np.zeros([1] * axes) for name, axes in names.items()}, "tsm.pth")
    assert (origin.code, len(origin.shifted)) == ("TSM", 18)
    assert origin.model() == {"backbone": "resnet101", "temporal": "tsm", "shift_every": 2}
    data = {"format": "something_v1", "root": "."}
    model = build_model_of({"data": data, "model": {"backbone": "resnet101", "width": 4, "shift_every": 2}})
    shifts = {layer.name for layer in model.layers if isinstance(layer, TemporalShift)}
    assert shifts == {f"{block}_shift" for block in origin.shifted}


def build_model_of(values):
    from keras_stss.config import parse_config

    return build_model(parse_config(values))


# Keras' own.


def hub_model(width=WIDTH):
    """A ResNet of one basic block a stage with KerasHub's layer names."""

    def conv(x, filters, kernel, strides, name):
        if strides > 1:
            x = keras.layers.ZeroPadding2D(kernel // 2)(x)
        padding = "valid" if strides > 1 else "same"
        return keras.layers.Conv2D(filters, kernel, strides, padding, use_bias=False, name=f"{name}_conv")(x)

    def bn(x, name):
        return keras.layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{name}_bn")(x)

    image = keras.Input((None, None, 3))
    x = keras.layers.ReLU()(bn(conv(image, width, 7, 2, "conv1"), "conv1"))
    x = keras.layers.MaxPooling2D(3, 2)(keras.layers.ZeroPadding2D(1)(x))
    for stage in range(4):
        name, strides = f"stack{stage}_block0", 2 if stage else 1
        y = keras.layers.ReLU()(bn(conv(x, width * 2**stage, 3, strides, f"{name}_1"), f"{name}_1"))
        y = bn(conv(y, width * 2**stage, 3, 1, f"{name}_2"), f"{name}_2")
        if stage:
            x = bn(conv(x, width * 2**stage, 1, strides, f"{name}_0"), f"{name}_0")
        x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(CLASSES, name="predictions")(x))


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
def test_keras_hub(tmp_path, suffix):
    """Files of every Keras format: the same logits on single images."""
    hub = hub_model()
    random = np.random.RandomState(0)
    for variable in hub.variables:
        positive = variable.name in ("gamma", "moving_variance")
        variable.assign(random.uniform(0.5 if positive else -0.5, 1.0, variable.shape))
    path = tmp_path / f"hub{suffix}"
    hub.save_weights(path) if suffix == ".weights.h5" else hub.save(path)
    model = small_model(tmp_path, temporal="tsn")
    report = load_pretrained(model, path, strict=True)
    assert report.code == "KerasHub"
    frames = originals.clips()[:, :1]
    images = model.get_layer("normalize")(frames)[:, 0]
    assert_close(model(frames), hub(images))


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (["conv1_conv", "conv2_block1_1_conv"], "strides in the first 1×1 convolution"),
        (["conv1_conv", "conv2_block1_preact_bn", "conv2_block1_1_conv"], "ResNetV2"),
        (["conv1_conv", "conv2_conv", "stack0_block0_1_conv"], "ResNet-D or -vd"),
        (["layers/conv2d"], "names no layers"),
        (["dense"], "no model that is known here"),
    ],
)
def test_keras_weights_that_cannot_fit(tmp_path, layers, says):
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        for number, name in enumerate(layers):
            group = file.create_group(f"layers/conv2d_{number}/vars" if "/" not in name else f"{name}/vars")
            group["0"] = np.zeros((1, 1, 1, 1))
            if "/" not in name:
                group.attrs["name"] = name
    with pytest.raises(ConfigError, match=says):
        inspect(tmp_path / "a.weights.h5")


# The doors.


def test_convert(tmp_path, weights, capsys):
    """Without a config the file's own model; what comes out gives the same outputs, and is read again."""
    # A converted model has the papers' width; resnet10 keeps it small.
    path, output = weights(tsm_names(width=64)), tmp_path / "tsm.keras"
    assert main(["convert", str(path), str(output), "--strict", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["code"] == "TSM"
    assert report["model"] == {"backbone": "resnet10", "temporal": "tsm"}
    assert (len(report["matched"]), report["classes"]) == (62, CLASSES)
    assert report["unmatched_source"] == report["unmatched_target"] == report["differences"] == []
    direct = small_model(tmp_path, width=64)
    load_pretrained(direct, path)
    frames = originals.clips()
    converted = load_model(output)
    np.testing.assert_array_equal(converted(frames), direct(frames))
    again = small_model(tmp_path, width=64, pretrained=str(output), pretrained_strict=True)
    np.testing.assert_array_equal(again(frames), direct(frames))


def test_convert_into_a_config(tmp_path, weights, capsys):
    path, output = weights(small_names(classes=10)), tmp_path / "small.keras"
    config = small_config(tmp_path, pretrained="nowhere.pth")
    line = ["convert", str(path), str(output), "--config", str(config), "model.temporal=tsn", "--classes", "3"]
    assert main(line) == 0
    text = capsys.readouterr().out
    assert "2 skipped: the head has 10 classes there, 3 here" in text
    assert f"written to {output}" in text
    assert load_model(output).name == "tsn_resnet10"
    assert load_model(output).output_shape == (None, 3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{weights}", "out.h5"], "must end in .keras"),
        (["{weights}", "{folder}/none/out.keras"], "no folder"),
        (["{folder}/none.pth", "{folder}/out.keras"], "no weight file"),
        (["{weights}", "{folder}/out.keras", "model.width=3"], "without --config"),
        (["{weights}", "{folder}/out.keras", "--config", "nonsense"], "no config"),
        (["{weights}", "{folder}/out.keras", "--strict", "--config", "{config}"], "does not fit the model exactly"),
    ],
)
def test_convert_refuses(tmp_path, weights, capsys, arguments, says):
    """Exit code 2 and one message, no traceback, no file."""
    places = {"weights": weights(small_names(classes=3)), "folder": tmp_path, "config": small_config(tmp_path)}
    line = ["convert", *(argument.format(**places) for argument in arguments)]
    if "{config}" in arguments:
        line += ["--classes", "4"]
    assert main(line) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("*.keras"))


def test_pretrained_in_a_config(tmp_path, weights):
    path = weights(small_names())
    config = small_config(tmp_path, pretrained=str(path))
    found = values_of(build_model(config, classes=CLASSES))["logits/bias"]
    np.testing.assert_array_equal(found, read_tensors(path)[1]["fc.bias"])
    assert not np.any(values_of(build_model(config, classes=CLASSES, pretrained=None))["logits/bias"])
    with pytest.raises(ConfigError, match="head has 5 classes there, 4 here"):
        build_model(config, classes=4, pretrained_strict=True)
    with pytest.raises(ConfigError, match="init and pretrained both"):
        build_model(config, classes=4, init="runs/demo")


def test_training_starts_from_pretrained(recipe, weights, tmp_path, caplog):
    """A run starts from the weights, and goes on without the file."""
    path = weights(small_names(classes=3))
    frozen = {"model.pretrained": str(path), "train.learning_rate": 1e-9, "train.epochs": 1}
    assert main(["train", "--config", str(recipe(**frozen))]) == 0
    best = values_of(load_model(tmp_path / "run"))
    kernel = read_tensors(path)[1]["layer3.0.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(best["res4_0_conv1/conv/kernel"], kernel, atol=1e-6)
    path.unlink()
    assert main(["train", "--config", str(recipe(**frozen))]) == 0


def test_run_directory_as_pretrained(tmp_path):
    """A model of this library lends its weights too, by a run directory or a file; another head is left out."""
    source = small_model(tmp_path)
    (tmp_path / "run").mkdir()
    source.save(tmp_path / "run" / "best.keras")
    for place in (tmp_path / "run", tmp_path / "run" / "best.keras"):
        found = values_of(small_model(tmp_path, classes=4, pretrained=str(place)))
        for name, value in values_of(source).items():
            if not name.startswith("logits"):
                np.testing.assert_array_equal(found[name], value, err_msg=name)
    with pytest.raises(ConfigError, match="no epoch of a run has ended"):
        small_model(tmp_path, pretrained=str(tmp_path))
    with pytest.raises(ConfigError, match="a model of this library already"):
        convert(tmp_path / "run", tmp_path / "other.keras")
