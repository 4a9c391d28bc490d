"""Weights of MobileNet-V2, I3D and GoogLeNet: names, layouts, reports, and the logits of the originals."""

import json
import re

import keras
import numpy as np
import originals
import originals_backbones as backbones
import pytest
import yaml

from keras_stss.cli import main
from keras_stss.config import ConfigError
from keras_stss.models import build_model, load_model, load_pretrained
from keras_stss.models.weights.pretrained import inspect
from keras_stss.models.weights.tensor_files import read_tensors

CLASSES = backbones.CLASSES
STATE = backbones.lively(backbones.mobilenet_names("torchvision"))


def build(folder, classes=CLASSES, **model):
    values = {
        "data": {"format": "clips", "root": ".", "annotations": "a.csv", "frames": 5, "resize": 40, "crop": 32},
        "model": {"dropout": 0.0, **model},
    }
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return build_model(path, classes=classes)


def write(folder, state):
    return originals.write_safetensors(folder / "weights.safetensors", state)


def values_of(model):
    return {each.path: keras.ops.convert_to_numpy(each) for each in model.variables if "seed" not in each.path}


def assert_close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# The originals.


def test_recorded_logits():
    """The recorded logits are those of the PyTorch originals."""
    pytest.importorskip("torch")
    for name, logits in backbones.record().items():
        assert_close(logits, backbones.recorded(name))


@pytest.mark.parametrize(
    ("form", "model"),
    [
        ({"form": "torchvision", "head": "classifier.1"}, {"temporal": "tsn"}),
        ({"form": "timm"}, {"temporal": "tsn"}),
        ({"form": "flat"}, {"temporal": "tsn"}),
        (backbones.TSM, {"temporal": "tsm"}),
    ],
    ids=["torchvision", "timm", "flat", "tsm"],
)
def test_mobilenet_logits(tmp_path, form, model):
    """Each code's names, whole and strict, into the model that the file describes: the original's logits."""
    path = write(tmp_path, backbones.renamed(backbones.mobilenet_names(**form), STATE))
    origin = inspect(path)
    assert origin.classes == CLASSES
    assert origin.model() == {"backbone": "mobilenet_v2", **model}
    model = build(tmp_path, **origin.model())
    report = load_pretrained(model, path, strict=True)
    assert (len(report.matched), len(report.skipped)) == (262, 52)
    name = "tsm_mobilenet_v2" if origin.shifted else "mobilenet_v2"
    assert_close(model(originals.clips()), backbones.recorded(name))


@pytest.mark.parametrize("form", ["pytorch", "flax"])
def test_i3d_logits(tmp_path, form):
    """PyTorch's names, and Flax' without a factor in the normalisation; odd sizes, where padding is uneven."""
    state = backbones.lively(backbones.inception_names(3))
    path = write(tmp_path, state) if form == "pytorch" else backbones.write_flax(tmp_path / "i3d.ckpt", state)
    assert inspect(path).model() == {"backbone": "i3d", "temporal": "3d"}
    model = build(tmp_path, backbone="i3d", temporal="3d")
    for variable in model.variables:
        variable.assign(keras.ops.full_like(variable, 0.3))
    report = load_pretrained(model, path, strict=True)
    assert len(report.filled) == (57 if form == "flax" else 0)
    assert set(report.filled.values()) <= {1.0}
    assert_close(model(backbones.long_clip()), backbones.recorded("i3d" if form == "pytorch" else "i3d_without_gamma"))


@pytest.mark.parametrize(("kernel", "frames"), [((7, 7, 7), 112), ((1, 7, 7), 56)])
def test_inflated_logits(tmp_path, kernel, frames):
    """Away from its ends an inflated network sees in a still clip what the 2-D one sees in the picture."""
    path = write(tmp_path, backbones.lively(backbones.inception_names(2)))
    section = inspect(path).model()
    assert section == {"backbone": "i3d", "temporal": "3d", "stem_padding": "symmetric"}
    model = build(tmp_path, **section, stem_kernel=list(kernel))
    report = load_pretrained(model, path, strict=True)
    assert sum("auxiliary head" in reason for reason in report.skipped.values()) == 3
    clip = np.broadcast_to(backbones.still(), (1, frames, 32, 32, 3))
    last = keras.Model(model.input, model.get_layer("mixed_5c").output)(clip)  # (1, T', 1, 1, 1024)
    assert last.shape == (1, 14, 1, 1, 1024)
    head = model.get_layer("logits")
    assert_close(head(last[:, 7, 0, 0]), backbones.recorded("googlenet"))
    assert np.abs(head(last[:, 0, 0, 0]) - backbones.recorded("googlenet")).max() > 0.1


# What goes where.


def test_image_weights(tmp_path):
    """torchvision's MobileNet-V2 into a TSM with another head and a motion block."""
    path = write(tmp_path, STATE)
    block = {"motion_squeeze": {"window": [3, 3]}}
    model = build(tmp_path, 3, backbone="mobilenet_v2", insert={"stage3": block})
    before = values_of(model)
    report = load_pretrained(model, path)
    assert report.matched["features.1.conv.1.weight"] == "stage2_0_project/conv/kernel"
    assert report.matched["features.17.conv.3.running_var"] == "stage5_3_project/bn/moving_variance"
    assert report.unmatched_source == report.mismatched == report.differences == []
    assert set(report.unmatched_target) == {path for path in before if path.startswith("stage3_motion_squeeze")}
    kept = {*report.unmatched_target, "logits/kernel", "logits/bias"}
    after = values_of(model)
    for name in before:
        assert np.array_equal(before[name], after[name]) == (name in kept), name
    depthwise = STATE["features.4.conv.1.0.weight"].transpose(2, 3, 0, 1)
    np.testing.assert_array_equal(after["stage3_0_depthwise/depthwise/kernel"], depthwise)


@pytest.mark.parametrize(
    ("form", "model", "says"),
    [
        ({"form": "timm"}, {}, r"not in the file: stage4_non_local/"),
        (backbones.TSM, {"temporal": "tsn"}, r"shifts in 10 residual blocks, the model in 0: set model\.temporal=tsm"),
        (backbones.TSM, {"shift_divisor": 4}, r"set model\.shift_divisor=8"),
        ({"form": "flat", "head": "new_fc"}, {"temporal": "tsm"}, r"shifts in 0 .* in 10: set model\.temporal=tsn"),
    ],
)
def test_strict(tmp_path, form, model, says):
    """What a loose load reports, a strict one refuses, and then leaves the model as it was."""
    path = write(tmp_path, backbones.renamed(backbones.mobilenet_names(**form), STATE))
    insert = {"stage4": "non_local"} if form == {"form": "timm"} else {}
    model = build(tmp_path, backbone="mobilenet_v2", insert=insert, **model)
    before = values_of(model)
    with pytest.raises(ConfigError, match=says):
        load_pretrained(model, path, strict=True)
    assert all(np.array_equal(value, before[name]) for name, value in values_of(model).items())
    assert load_pretrained(model, path).faults()


def test_stem_that_differs(tmp_path):
    """Padding is a difference to report, a kernel of another length an error; inflation fits every length."""
    flat = write(tmp_path, backbones.lively(backbones.inception_names(2)))
    model = build(tmp_path, backbone="i3d", temporal="3d", stem_kernel=[1, 7, 7])
    says = r"has symmetric padding, the model's same: set model\.stem_padding=symmetric"
    with pytest.raises(ConfigError, match=says):
        load_pretrained(model, flat, strict=True)
    assert load_pretrained(model, flat).unmatched_target == []
    deep = originals.write_safetensors(tmp_path / "deep.safetensors", backbones.lively(backbones.inception_names(3)))
    with pytest.raises(ConfigError, match=r"\(64, 3, 7, 7, 7\) does not fit conv1/conv/kernel \(1, 7, 7, 3, 64\)"):
        load_pretrained(model, deep)


def test_other_backbones(tmp_path):
    path = write(tmp_path, STATE)
    for here, temporal in (("resnet10", "tsn"), ("i3d", "3d")):
        with pytest.raises(ConfigError, match=f"holds a mobilenet_v2, the model is a {here}: set model.backbone=mob"):
            load_pretrained(build(tmp_path, backbone=here, temporal=temporal, width=8), path)
    with pytest.raises(ConfigError, match="does not fit stage1_conv/conv/kernel"):
        load_pretrained(build(tmp_path, backbone="mobilenet_v2", width=32), path)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"conv_stem.weight": (1,), "blocks.0.0.conv_dw.weight": (1,)}, "no model that is known here"),
        ({f"features.{n}.conv.0.0.weight": (1,) for n in range(1, 15)}, "no model that is known here"),
        ({"Conv2d_1a_3x3.conv.weight": (1,)}, "no model that is known here.*GoogLeNet"),
    ],
    ids=["another depth", "fewer blocks", "Inception-v3"],
)
def test_unknown(tmp_path, names, says):
    with pytest.raises(ConfigError, match=says):
        inspect(write(tmp_path, originals.seeded(names)))


def test_keras_applications(tmp_path):
    """keras.applications' MobileNet-V2 pads otherwise, and is refused."""
    layers = [keras.layers.Conv2D(2, 1, name="Conv1"), keras.layers.DepthwiseConv2D(3, name="block_1_depthwise")]
    keras.Sequential([keras.Input((8, 8, 3)), *layers]).save(tmp_path / "applications.h5")
    with pytest.raises(ConfigError, match=r"keras\.applications' MobileNet-V2, which pads strided convolutions on one"):
        inspect(tmp_path / "applications.h5")


def test_shift_the_other_way(tmp_path):
    """A shift from the past first, run forwards, is a shift from the future first, run backwards."""
    path = write(tmp_path, backbones.renamed(backbones.mobilenet_names(**backbones.TSM), STATE))
    forwards, other = (build(tmp_path, backbone="mobilenet_v2") for _ in range(2))
    load_pretrained(forwards, path)
    load_pretrained(other, path, past_first=True)
    frames = originals.clips()
    assert_close(other(frames), forwards(frames[:, ::-1]))
    assert np.abs(other(frames) - forwards(frames)).max() > 1e-2 * np.abs(forwards(frames)).max()


# Other networks that ImageNet weights go into.


def test_stm_starts_from_a_resnet(tmp_path):
    """An STM network has a ResNet's layers, and more: those keep their values, and strict refuses."""
    names = originals.checkpoint_names("tsm_r18")
    names = {name.removeprefix("module.base_model.").replace(".net.", "."): shape for name, shape in names.items()}
    # One block a stage, and no head.
    names = {name: shape for name, shape in names.items() if not re.match(r"layer\d\.1|module\.new_fc", name)}
    path = write(tmp_path, originals.seeded(names))
    model = build(tmp_path, backbone="resnet10", temporal="stm")
    before = values_of(model)
    report = load_pretrained(model, path)
    assert report.matched["layer2.0.conv2.weight"] == "res3_0_conv2/conv/kernel"
    assert report.unmatched_source == report.mismatched == []
    new = {path for path in before if "_temporal/" in path or "_cmm/" in path}
    assert new and set(report.unmatched_target) == new | {"logits/kernel", "logits/bias"}
    assert all(np.array_equal(values_of(model)[path], before[path]) for path in new)
    with pytest.raises(ConfigError, match="not in the file: res2_0_"):
        load_pretrained(model, path, strict=True)


def test_blocks_of_other_settings(tmp_path):
    """Motion blocks of a run's model may differ from the file's, any of them; the backbone may not."""
    options = {"backbone": "resnet10", "width": 8}
    build(tmp_path, **options, insert={"res3": {"non_local": {"channels": 4}}}).save(tmp_path / "run.keras")
    wide = build(tmp_path, **options, insert={"res3": {"non_local": {"channels": 6}}})
    report = load_pretrained(wide, tmp_path / "run.keras")
    assert report.mismatched and all(" fit res3_non_local/" in line for line in report.mismatched)
    with pytest.raises(ConfigError, match="does not fit conv1/conv/kernel"):
        load_pretrained(build(tmp_path, backbone="resnet10", width=16), tmp_path / "run.keras")


# The doors.


def test_convert(tmp_path, capsys):
    """Without a config the file's own model; what comes out gives the same outputs."""
    path = write(tmp_path, backbones.renamed(backbones.mobilenet_names(**backbones.TSM), STATE))
    output = tmp_path / "tsm.keras"
    assert main(["convert", str(path), str(output), "--strict", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["code"], report["classes"], report["differences"]) == ("TSM", CLASSES, [])
    assert report["model"] == {"backbone": "mobilenet_v2", "temporal": "tsm"}
    assert_close(load_model(output)(originals.clips()), backbones.recorded("tsm_mobilenet_v2"))


def test_convert_inflated(tmp_path, capsys):
    """A 2-D network becomes an I3D; of how many frames its first kernel is, a config says."""
    path = write(tmp_path, backbones.lively(backbones.inception_names(2)))
    assert main(["convert", str(path), str(tmp_path / "i3d.keras"), "--strict"]) == 0
    assert "torchvision's GoogLeNet, inflated" in capsys.readouterr().out
    kernel = load_model(tmp_path / "i3d.keras").get_layer("conv1").conv.kernel
    flat = read_tensors(path)[1]["conv1.conv.weight"].transpose(2, 3, 1, 0)
    assert kernel.shape == (7, 7, 7, 3, 64)
    np.testing.assert_allclose(keras.ops.sum(kernel, axis=0), flat, rtol=1e-6)
