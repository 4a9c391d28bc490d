"""Looking inside: every stage and every motion block, the same numbers and weights as the model's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from test_models import clips, enliven

from keras_stss.blocks import MotionSqueezeBlock, SELFYBlock
from keras_stss.config import STAGES
from keras_stss.layers import TemporalShift
from keras_stss.models import build_model, ensemble, feature_extractor, load_model
from keras_stss.models.i3d import i3d
from keras_stss.models.mobilenet_v2 import mobilenet_v2
from keras_stss.models.resnet import resnet

SELFY = {"temporal_offsets": [-1, 1], "window": [3, 5], "channels": 4}
SELFY |= {"extraction_channels": [4, 6], "integration_channels": [6]}
SQUEEZE = {"channels": 4, "window": [5, 3], "transform_channels": [4, 4, 4]}
INSERT = {"res3": {"selfy": SELFY}, "res4": {"motion_squeeze": SQUEEZE}}
MOTION = {f"res3_selfy/{kind}" for kind in ("similarity", "displacement", "confidence")}
MOTION |= {f"res4_motion_squeeze/{kind}" for kind in ("similarity", "displacement", "confidence")}
RESNET = set(STAGES["resnet18"])


@pytest.fixture
def build(tmp_path):
    """Builds a small model with blocks after res3 and res4, or as the options say."""
    data = {"format": "clips", "root": ".", "annotations": "a.csv", "frames": 4, "resize": 40, "crop": 32}
    model = {"backbone": "resnet10", "width": 8, "insert": INSERT}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"data": data, "model": model}), encoding="utf-8")
    # Of other weights, two scores of a map may be so near that eager execution and a graph each take another for the
    # largest.
    keras.utils.set_random_seed(11)
    return lambda **options: build_model(path, classes=3, **options)


def check_same(actual, expected):
    assert set(actual) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


def test_what_there_is(build):
    model = enliven(build())
    extractor = feature_extractor(model)
    assert extractor.input_shape == model.input_shape and extractor.inputs[0].dtype == "uint8"
    features = extractor(clips())
    assert set(features) == {"logits", *RESNET, *MOTION}
    np.testing.assert_array_equal(features["logits"], model(clips()))
    shapes = {name: tuple(tensor.shape) for name, tensor in features.items()}
    assert shapes["pool1"] == shapes["res2"] == (2, 4, 8, 8, 8)
    assert (shapes["res3"], shapes["res4"], shapes["res5"]) == ((2, 4, 4, 4, 16), (2, 4, 2, 2, 32), (2, 4, 1, 1, 64))
    # SELFY compares maps of half the size, at two offsets; MotionSqueeze those of the stage, with the next frame.
    assert shapes["res3_selfy/similarity"] == (2, 4, 2, 2, 2, 3, 5)
    assert shapes["res3_selfy/displacement"] == (2, 4, 2, 2, 2, 2)
    assert shapes["res3_selfy/confidence"] == (2, 4, 2, 2, 2, 1)
    assert shapes["res4_motion_squeeze/similarity"] == (2, 4, 2, 2, 1, 5, 3)
    assert shapes["res4_motion_squeeze/displacement"] == (2, 4, 2, 2, 1, 2)
    assert shapes["res4_motion_squeeze/confidence"] == (2, 4, 2, 2, 1, 1)


def test_numbers_are_those_of_the_model(build):
    """Stages hold what their last block gives; a block's features are those of the tensor that it gets."""
    model = build()
    features = feature_extractor(model)(clips())
    for stage, layer in {"res2": "res2_0_relu", "res3": "res3_selfy", "res4": "res4_motion_squeeze"}.items():
        expected = keras.Model(model.input, model.get_layer(layer).output)(clips())
        np.testing.assert_array_equal(features[stage], expected)
    for name in ("res3_selfy", "res4_motion_squeeze"):
        block = model.get_layer(name)
        expected = block.motion_features(keras.Model(model.input, block.input)(clips()))
        for kind, tensor in expected.items():
            np.testing.assert_allclose(features[f"{name}/{kind}"], tensor, rtol=1e-5, atol=1e-6)


def test_weights_are_shared(build):
    model = build()
    extractor = feature_extractor(model)
    assert {id(weight) for weight in extractor.weights} == {id(weight) for weight in model.weights}
    assert len(extractor.weights) == len(model.weights)
    before = extractor(clips())
    kernel = model.get_layer("res3_selfy").reduce.weights[0]
    kernel.assign(-kernel)
    after = extractor(clips())
    np.testing.assert_array_equal(after["res2"], before["res2"])
    for name in ("res3", "res3_selfy/similarity"):
        assert np.abs(after[name] - before[name]).max() > 1e-3


def test_displacement_of_a_picture_that_moves(build):
    """One position (4 pixels at pool1) to the right and none down for every frame; the picture is found again."""
    squeeze = {"channels": None, "window": [5, 7], "sigma": None}
    model = build(insert={"pool1": {"motion_squeeze": squeeze}}, temporal="tsn", width=32)
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), "uint8")
    moving = np.stack([picture[:, 16 - 4 * time : 80 - 4 * time] for time in range(4)])[None]
    features = feature_extractor(model)(moving)
    displacement = features["pool1_motion_squeeze/displacement"][0, :3, 4:-4, 4:-4, 0]  # (3, 8, 8, 2)
    np.testing.assert_allclose(np.median(displacement, axis=(0, 1, 2)), [1, 0], atol=0.05)
    assert np.median(features["pool1_motion_squeeze/confidence"][0, :3, 4:-4, 4:-4]) > 0.99


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(build, precision):
    features = feature_extractor(build(**{"train.precision": precision}))(clips())
    assert features["logits"].dtype == "float32"
    assert features["res3"].dtype == keras.DTypePolicy(precision).compute_dtype
    assert all(np.isfinite(tf.cast(tensor, "float32")).all() for tensor in features.values())


def test_any_size_in_one_graph(build):
    model = build()
    extractor = feature_extractor(model)
    graph = tf.function(extractor, input_signature=[tf.TensorSpec([None, None, None, None, 3], "uint8")])
    for size in [(2, 4, 32, 32), (1, 1, 45, 33), (3, 2, 31, 64)]:
        features, expected = graph(clips(*size)), extractor(clips(*size))
        assert set(features) == set(expected)
        for name, tensor in expected.items():
            assert features[name].shape == tensor.shape
            np.testing.assert_allclose(features[name], tensor, rtol=1e-3, atol=1e-3)
    assert set(extractor.predict(clips(), verbose=0)) == set(expected)


def test_of_a_model_from_a_file(build, tmp_path):
    model = enliven(build())
    model.save(tmp_path / "best.keras")
    check_same(feature_extractor(load_model(tmp_path))(clips()), feature_extractor(model)(clips()))


def test_the_extractor_has_a_file_too(build, tmp_path):
    """In which a block and its features still share their weights."""
    extractor = feature_extractor(enliven(build()))
    extractor.save(tmp_path / "features.keras")
    loaded = keras.saving.load_model(tmp_path / "features.keras")
    check_same(loaded(clips()), extractor(clips()))
    assert len(loaded.weights) == len(extractor.weights)
    assert loaded.get_layer("res3_selfy_features").block is loaded.get_layer("res3_selfy")


def test_return_features(build):
    model = build(return_features=True)
    assert set(model(clips())) == {"logits", *RESNET, *MOTION}


def test_blocks_in_a_row_and_side_by_side(build):
    """Each has its features; the stage is what comes of them all."""
    blocks = [{"selfy": SELFY}, {"parallel": [{"selfy": SELFY}, {"motion_squeeze": SQUEEZE}]}, {"selfy": SELFY}]
    model = build(insert={"res3": blocks})
    names = [layer.name for layer in model.layers if hasattr(layer, "motion_features")]
    assert len(names) == 4 and all(name.startswith("res3_") for name in names)
    features = feature_extractor(model)(clips())
    assert {name for name in features if "/" in name} == {
        f"{name}/{kind}" for name in names for kind in ("similarity", "displacement", "confidence")
    }
    following = keras.Model(model.input, model.get_layer("res4_0_shift").input)(clips())
    np.testing.assert_array_equal(features["res3"], following)


def test_of_an_ensemble(build):
    """Every member has its own, of its own frames, and all of it is what the member alone gives."""
    members = [(enliven(build(temporal=temporal)), frames) for temporal, frames in (("tsn", 2), ("tsm", 4))]
    features = feature_extractor(ensemble(members))(clips())
    names = {"logits", *RESNET, *MOTION}
    assert set(features) == {"logits", *(f"member{number}_{name}" for number in (0, 1) for name in names)}
    for number, taken in enumerate(([1, 3], [0, 1, 2, 3])):
        alone = feature_extractor(members[number][0])(clips()[:, taken])
        for name in names:
            np.testing.assert_allclose(features[f"member{number}_{name}"], alone[name], rtol=1e-5, atol=1e-5)


def test_motion_of_stm(build):
    """STM compares no positions; what its blocks have is the motion of equation 2, in or after the backbone."""
    features = feature_extractor(build(temporal="stm", insert={"res3": "stm"}))(clips())
    motion = {"res3_stm/motion", *(f"{stage}_0_cmm/motion" for stage in RESNET - {"pool1"})}
    assert set(features) == {"logits", *RESNET, *motion}


BACKBONES = {
    "resnet10": lambda frames, insert: resnet(frames, "resnet10", 8, 8, insert),
    "resnet50": lambda frames, insert: resnet(frames, "resnet50", 8, None, insert),
    "stm": lambda frames, insert: resnet(frames, "resnet18", 16, None, insert, stm={}),
    "mobilenet_v2": lambda frames, insert: mobilenet_v2(frames, 0.25, 8, insert),
    "i3d": lambda frames, insert: i3d(frames, (1, 7, 7), 0.25, "same", insert),
}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("inserted", [False, True])
def test_stages_are_the_backbones(backbone, inserted):
    """Exactly the tensors that the backbone's function calls its stages, with and without layers after them."""
    names = STAGES.get(backbone, STAGES["resnet18"])
    insert = {stage: [TemporalShift(2, name=f"{stage}_{n}") for n in "ab"] for stage in names} if inserted else {}
    frames = keras.Input((None, None, None, 3))
    stages = BACKBONES[backbone](frames, insert)
    extractor = feature_extractor(keras.Model(frames, list(stages.values())[-1]))
    found = {name: tensor for name, tensor in extractor.output.items() if "/" not in name and name != "logits"}
    assert list(found) == list(stages) == list(names)
    assert all(found[stage] is stages[stage] for stage in names)


def test_anyones_functional_model():
    """Without stages, but with blocks: logits and motion."""
    frames = keras.Input((None, None, None, 3))
    x = SELFYBlock(**SELFY, name="mine")(keras.layers.Dense(4)(frames))
    x = MotionSqueezeBlock(**SQUEEZE, name="yours")(x)
    model = keras.Model(frames, keras.layers.GlobalAveragePooling3D()(x))
    kinds = ("similarity", "displacement", "confidence")
    features = feature_extractor(model)(clips())
    assert set(features) == {"logits", *(f"{name}/{kind}" for name in ("mine", "yours") for kind in kinds)}


def test_blocks_without_motion_features(build):
    """A block that passes its input on has nothing to show."""
    features = feature_extractor(build(insert={"res3": {"selfy": {**SELFY, "output": "v"}}}))(clips())
    assert set(features) == {"logits", *RESNET}
