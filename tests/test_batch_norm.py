"""Batch normalisation that is partly or wholly frozen, in every layer that has it, and what files hold of it."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_stss.blocks import SELFYBlock
from keras_stss.config import ConfigError, TrainConfig, parse_config
from keras_stss.layers import ConvExtractor
from keras_stss.models import build_model, load_model
from keras_stss.training import batch_norm
from keras_stss.training.batch_norm import check_frozen, ordinary, prepare_batch_norm, statistics
from keras_stss.training.groups import parameter_groups

SMALL = {"backbone": "resnet10", "width": 8, "dropout": 0.0}
SELFY = {"selfy": {"channels": 8, "window": [5, 5], "temporal_offsets": [-1, 0], "extraction_channels": [4, 4]}}


def build(**model):
    values = {"data": {"format": "something_v2", "root": "x", "frames": 4}, "model": model}
    return build_model(parse_config(values), classes=3)


def forward(model, seed=1):
    frames = np.random.default_rng(seed).integers(0, 256, (2, 4, 32, 32, 3), dtype=np.uint8)
    return model(frames, training=True).numpy()


def moved(model, before):
    """Layers whose moving statistics are no longer those of ``before``."""
    after = dict(zip((variable.path for variable in model.variables), model.get_weights(), strict=True))
    old = dict(zip((variable.path for variable in model.variables), before, strict=True))
    paths = [path for path in after if "moving" in path and not np.array_equal(after[path], old[path])]
    return sorted({path.rsplit("/", 1)[0] for path in paths})


@pytest.mark.parametrize(
    ("choice", "learning"), [("train", None), ("partial", ["conv1/bn"]), ("frozen", [])], ids=lambda value: str(value)
)
def test_only_what_is_said_learns_and_moves(choice, learning):
    """Statistics, scale and shift alike, down to the map convolutions inside a motion block."""
    model = build(**SMALL, insert={"res3": SELFY})
    all_of_them = sorted(layer.path for layer in batch_norm.layers(model))
    assert any("_selfy/extract/conv0/bn" in path for path in all_of_them)
    prepare_batch_norm(model, TrainConfig(batch_norm=choice))
    learning = all_of_them if learning is None else learning
    before = model.get_weights()
    forward(model)
    assert moved(model, before) == learning
    norm = next(group for group in parameter_groups(model, TrainConfig()) if group.name == "norm")
    assert sorted(variable.path for variable in norm.variables) == sorted(
        f"{path}/{name}" for path in learning for name in ("gamma", "beta")
    )
    assert sorted(variable.path for variable in statistics(model)) == sorted(
        f"{path}/{name}" for path in learning for name in ("moving_mean", "moving_variance")
    )


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "i3d"])
def test_the_first_of_every_backbone_is_found(backbone):
    model = build(**{**SMALL, "backbone": backbone, "temporal": "3d" if backbone == "i3d" else "tsn"})
    prepare_batch_norm(model, TrainConfig(batch_norm="partial"))
    first = {"mobilenet_v2": "stage1_conv/bn", "i3d": "conv1/bn"}[backbone]
    assert [layer.path for layer in batch_norm.layers(model) if layer.trainable] == [first]


def test_every_member_of_an_ensemble_keeps_its_first():
    model = build(ensemble=[{**SMALL, "frames": 2}, {**SMALL, "frames": 4}])
    prepare_batch_norm(model, TrainConfig(batch_norm="partial"))
    learning = [layer.path for layer in batch_norm.layers(model) if layer.trainable]
    assert sorted(learning) == ["member0_conv1/bn", "member1_conv1/bn"]


@pytest.mark.parametrize("implementation", ["auto", "reference"])
def test_frozen_maps_are_those_of_inference(implementation):
    """Values and gradients of the extractor, whose native form folds normalisation into its kernels."""
    extractor = ConvExtractor((4, 6, 5), implementation=implementation)
    rng = np.random.default_rng(2)
    volume = tf.constant(rng.normal(size=(2, 2, 3, 3, 2, 5, 5)), tf.float32)
    extractor.build(volume.shape)
    for variable in extractor.variables:
        value = rng.uniform(0.5, 1.5, variable.shape)
        variable.assign(value if "moving" in variable.path else value - 0.7)
    cotangent = tf.constant(rng.normal(size=(2, 2, 3, 3, 2, 5)), tf.float32)

    def run(training):
        with tf.GradientTape() as tape:
            tape.watch(volume)
            kernels = [conv.kernel.value for conv in extractor.convs]
            outputs = extractor(volume, training=training)
        return [outputs, *tape.gradient(outputs, [volume, *kernels], cotangent)]

    inference, learning = run(False), run(True)
    assert not np.allclose(learning[0], inference[0], atol=1e-2)
    prepare_batch_norm(_model_of(extractor), TrainConfig(batch_norm="frozen"))
    inference, frozen = run(False), run(True)
    for value, expected in zip(frozen, inference, strict=True):
        np.testing.assert_array_equal(value, expected)
        assert np.any(expected)


def _model_of(layer):
    inputs = keras.Input((2, 3, 3, 2, 5, 5))
    return keras.Model(inputs, layer(inputs))


def test_a_frozen_model_trains_as_it_is_evaluated():
    model = build(**SMALL)
    prepare_batch_norm(model, TrainConfig(batch_norm="frozen"))
    frames = np.random.default_rng(1).integers(0, 256, (2, 4, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(forward(model), model(frames, training=False).numpy())


def test_the_file_is_an_ordinary_model(tmp_path):
    """Loaded from it, all layers learn, also those whose own configuration would say otherwise; ours stay as set."""
    inputs = keras.Input((4, 8, 8, 3))
    outputs = keras.layers.BatchNormalization(name="bare")(inputs)
    outputs = SELFYBlock(window=(3, 3), temporal_offsets=(0, 1), channels=4, name="selfy")(outputs)
    model = keras.Model(inputs, keras.layers.BatchNormalization(name="last", trainable=False)(outputs))
    before = len(model.trainable_variables)
    prepare_batch_norm(model, TrainConfig(batch_norm="partial", sync_batch_norm=True))
    first, *others = batch_norm.layers(model)
    assert (first.name, first.trainable, first.synchronized) == ("bare", True, True)
    assert not any(layer.trainable or layer.synchronized for layer in others)
    flags = [(layer.trainable, layer.synchronized) for layer in batch_norm.layers(model)]
    with pytest.raises(KeyboardInterrupt), ordinary(model):
        raise KeyboardInterrupt
    with ordinary(model):
        model.save(tmp_path / "best.keras")
    assert [(layer.trainable, layer.synchronized) for layer in batch_norm.layers(model)] == flags
    loaded = load_model(tmp_path / "best.keras")
    assert all(layer.trainable and not layer.synchronized for layer in batch_norm.layers(loaded))
    assert len(loaded.trainable_variables) == before + 2
    for value, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_a_block_that_could_never_learn_is_refused(caplog):
    """A new block whose last scale is zero; one without statistics gets a warning; trained ones neither."""
    blocks = {"res2": {"non_local": {}}, "res3": SELFY}
    model = build(**SMALL, insert=blocks)
    check_frozen(model)  # nothing is frozen
    prepare_batch_norm(model, TrainConfig(batch_norm="partial"))
    with pytest.raises(ConfigError, match=r"zero, so .* never learn: res2_non_local/project/bn\. .*model\.init"):
        check_frozen(model)
    for layer in batch_norm.layers(model):
        layer.gamma.assign(np.ones(layer.gamma.shape))
        if "selfy" not in layer.path:
            layer.moving_mean.assign(np.ones(layer.gamma.shape))
    with caplog.at_level(logging.WARNING, "keras_stss"):
        check_frozen(model)
    assert "no statistics yet and so will normalise nothing: res3_selfy/extract/conv0/bn, " in caplog.text
    caplog.clear()
    for layer in batch_norm.layers(model):
        layer.moving_mean.assign(np.ones(layer.gamma.shape))
    check_frozen(model)
    assert not caplog.text
