"""Ensembles: which frames each member sees, what comes of the scores, and one model with one set of names."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from conftest import VALIDATION
from test_models import clips

from keras_stss.cli import main
from keras_stss.config import load_config
from keras_stss.layers.sample_frames import MeanScores, SampleFrames
from keras_stss.models import build_model, ensemble, load_model, load_pretrained, transfer_weights
from keras_stss.ops import portable

SELFY = {"temporal_offsets": [-1, 1], "window": [3, 3], "channels": 4}
SELFY |= {"extraction_channels": [4, 6], "integration_channels": [6]}
NETWORK = {"backbone": "resnet10", "width": 4, "insert": {"res3": {"selfy": SELFY}}}


@pytest.fixture
def folder(tmp_path):
    """With a config of one small network, and one of an ensemble."""
    data = {"format": "clips", "root": ".", "annotations": "a.csv", "resize": 40, "crop": 32}
    members = [{**NETWORK, "frames": 4, "temporal": "tsn"}, {**NETWORK, "frames": 8}]
    for name, model in {"one": NETWORK, "both": {"ensemble": members}}.items():
        text = yaml.safe_dump({"data": {**data, "frames": 8}, "model": model})
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def make_members(folder, classes=3, precision="float32"):
    """A TSN of 4 and a TSM of 8 frames, with heads that differ: they start with weights of a thousandth."""
    members = []
    for temporal, frames in (("tsn", 4), ("tsm", 8)):
        model = build_model(folder / "one.yaml", classes, temporal=temporal, **{"train.precision": precision})
        head = model.get_layer("logits").kernel
        head.assign(np.random.default_rng(frames).normal(size=head.shape) / 4)
        members.append((model, frames))
    return members


def probabilities(model, frames):
    logits = np.asarray(model(frames), "float64")
    scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("frames", "time", "taken"),
    [
        (8, 16, [1, 3, 5, 7, 9, 11, 13, 15]),
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, 5, [0, 0, 1, 2, 2, 3, 4, 4]),
        (2, 7, [1, 5]),
        (3, 1, [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_the_middle_of_each_segment(frames, time, taken, known):
    layer = SampleFrames(frames)
    sample = tf.function(layer, input_signature=[tf.TensorSpec([2, time if known else None, 3], "uint8")])
    clip = np.random.default_rng(0).integers(0, 256, (2, time, 3), "uint8")
    sampled = sample(clip)
    assert sampled.dtype == "uint8" and sampled.shape[1] == frames
    np.testing.assert_array_equal(sampled, clip[:, taken])
    assert layer(keras.Input((None, 5, 5, 3), dtype="uint8")).shape == (None, frames, 5, 5, 3)


@pytest.mark.parametrize("frames", [0, -1, 2.0, "8", True])
def test_frames_refused(frames):
    with pytest.raises(ValueError, match="Received: frames="):
        SampleFrames(frames)


def test_mean_of_probabilities_by_hand():
    """(1/4, 3/4) and (1/2, 1/2) make (3/8, 5/8)."""
    logits = MeanScores()([np.array([[7.0, 7 + np.log(3)]]), np.array([[-2.0, -2.0]])])
    np.testing.assert_allclose(np.exp(logits), [[3 / 8, 5 / 8]], rtol=1e-6)


def test_mean_of_scores_far_apart():
    """No overflow and no logarithm of zero, half precision or not; the result is float32."""
    far = [np.array([[1e4, 0.0, -1e4]], "float16"), np.array([[-1e4, 0.0, -1e4]], "float16")]
    logits = MeanScores(dtype="mixed_float16")(far)
    assert logits.dtype == "float32"
    # The third class is never the largest: 20,000 below the first, 10,000 below the second.
    np.testing.assert_allclose(logits, [[-np.log(2), -np.log(2), -1e4 - np.log(2)]], rtol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_scores_are_averaged(folder, precision):
    """Each member is what it was alone, on its own frames; any number of frames, height and width."""
    (few, _), (many, _) = members = make_members(folder, precision=precision)
    model = ensemble(members)
    assert model.output.dtype == "float32" and model.input_shape == (None, None, None, None, 3)
    tolerance = {"float32": 1e-6, "mixed_float16": 2e-3}[precision]
    for size, first, second in [
        ((2, 8, 32, 32), [1, 3, 5, 7], range(8)),
        ((1, 4, 45, 33), range(4), [0, 0, 1, 1, 2, 2, 3, 3]),
        ((1, 1, 32, 32), [0] * 4, [0] * 8),
    ]:
        frames = clips(*size)
        expected = (probabilities(few, frames[:, first]) + probabilities(many, frames[:, second])) / 2
        np.testing.assert_allclose(probabilities(model, frames), expected, atol=tolerance)
        assert np.abs(probabilities(few, frames) - probabilities(many, frames)).max() > 1e-2


def test_names_and_paths_are_unique(folder):
    """One flat model, in which every name tells its member."""
    members = make_members(folder)
    model = ensemble(members)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    paths = [weight.path for weight in model.weights]
    assert len(paths) == len(set(paths)) == sum(len(member.weights) for member, _ in members)
    for number, (member, _) in enumerate(members):
        own = {path for path in paths if path.startswith(f"member{number}_")}
        assert own == {f"member{number}_{weight.path}" for weight in member.weights}
    assert model.count_params() == sum(member.count_params() for member, _ in members)


def test_members_are_copied(folder):
    """What happens to a member later does not touch the ensemble, and the other way round."""
    (member, count), other = make_members(folder)
    model = ensemble([(member, count), other])
    before = model(clips())
    alone = member(clips())
    member.get_layer("logits").kernel.assign(member.get_layer("logits").kernel * 2)
    np.testing.assert_array_equal(model(clips()), before)
    assert np.abs(member(clips()) - alone).max() > 1e-2


def test_built_from_a_config(folder):
    model = build_model(folder / "both.yaml", classes=3)
    assert [model.get_layer(f"member{number}_frames").frames for number in (0, 1)] == [4, 8]
    shifts = [layer.name for layer in model.layers if layer.name.endswith("_shift")]
    assert shifts and all(name.startswith("member1_") for name in shifts)
    assert model.get_layer("member0_res3_selfy").window == (3, 3)
    assert load_config(folder / "both.yaml").data.frames == 8


def test_every_member_loads_its_own_weights(folder):
    """``pretrained`` of each member names a model that was trained alone."""
    values = yaml.safe_load((folder / "both.yaml").read_text(encoding="utf-8"))
    members = make_members(folder)
    for number, (member, _) in enumerate(members):
        member.save(folder / f"{number}.keras")
        values["model"]["ensemble"][number]["pretrained"] = str(folder / f"{number}.keras")
    (folder / "both.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    model = build_model(folder / "both.yaml", classes=3)
    np.testing.assert_array_equal(model(clips()), ensemble(members)(clips()))


def test_file_round_trip(folder):
    model = ensemble(make_members(folder))
    model.save(folder / "best.keras")
    loaded = load_model(folder)
    for size in [(2, 8, 32, 32), (1, 3, 40, 33)]:
        np.testing.assert_array_equal(loaded(clips(*size)), model(clips(*size)))
    # Names survive the file, so that a loaded ensemble still lends its weights, and strictly so.
    twin = build_model(folder / "both.yaml", classes=3)
    assert transfer_weights(loaded, twin)[1] == []
    np.testing.assert_array_equal(twin(clips()), model(clips()))
    assert len(load_pretrained(twin, folder / "best.keras", strict=True).matched) == len(model.weights)


def test_a_folder_with_an_ensemble_is_a_run(trained_run, tmp_path, capsys):
    """As docs/models.md says: with the config and the labels of the member that sees most frames."""
    alone = load_model(trained_run)
    for name in ("config.yaml", "labels.json"):
        shutil.copy(trained_run / name, tmp_path)
    ensemble([(alone, 2), (alone, 4)]).save(tmp_path / "best.keras")
    assert main(["evaluate", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == VALIDATION


def test_the_ensemble_learns(folder):
    """Every trainable weight of every member moves in one step of fit."""
    model = ensemble(make_members(folder))
    model.compile(keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [weight.numpy() for weight in model.trainable_weights]
    history = model.fit(clips(3, 8, 64, 64), np.arange(3), batch_size=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    still = [w.path for w, old in zip(model.trainable_weights, before) if np.array_equal(w.numpy(), old)]
    assert still == []


def test_a_graph_of_stock_operations(folder):
    """As it is exported: for any number of frames, without the native library."""
    model = ensemble(make_members(folder))
    with portable():
        served = tf.function(model, input_signature=[tf.TensorSpec([None, None, None, None, 3], "uint8")])
        graph = served.get_concrete_function().graph.as_graph_def()
    for size in [(2, 8, 32, 32), (1, 5, 40, 33)]:
        np.testing.assert_allclose(served(clips(*size)), model(clips(*size)), atol=1e-5)
    operations = {node.op for nodes in (graph.node, *(f.node_def for f in graph.library.function)) for node in nodes}
    assert not any(name.startswith(("KerasStss>", "PyFunc", "EagerPyFunc")) for name in operations)


def test_refused(folder):
    (member, count), _ = make_members(folder)
    with pytest.raises(ValueError, match=r"at least two models. Received: 1"):
        ensemble([(member, count)])
    with pytest.raises(ValueError, match=r"the same classes. Received: classes=\[3, 4\]"):
        ensemble([(member, count), make_members(folder, classes=4)[1]])
