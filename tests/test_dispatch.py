"""Which implementation runs where: XLA, strategies, export, dtypes, and what is asked for by name."""

import logging
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_stss import build_model
from keras_stss.blocks import SELFYBlock
from keras_stss.config import ConfigError, parse_config
from keras_stss.layers import SpatioTemporalSelfSimilarity
from keras_stss.ops import dispatch, native_status, portable, stss
from keras_stss.ops.native import library, surroundings

CLIP = np.random.default_rng(0).normal(size=(2, 3, 6, 5, 8)).astype("float32")
ARGUMENTS = {"temporal_offsets": (-1, 0, 2), "window": (3, 5)}
SMALL = {"channels": 6, "window": (5, 3), "extraction_channels": (4, 8), "integration_channels": (6, 7)}


@pytest.fixture
def native():
    """Skips where the native operation cannot run."""
    if reason := dispatch.why_not_native("stss"):
        pytest.skip(f"the native operation cannot run: {reason}")


@pytest.fixture
def as_if_native(monkeypatch):
    """The choice alone, as if the library were there; a list that choose() adds the answers to."""
    monkeypatch.delenv("KERAS_STSS_NATIVE", raising=False)
    monkeypatch.setattr(library, "obstacle", lambda operation: (None, None))
    monkeypatch.setattr(dispatch, "_summary", lambda: "as if they were there")
    monkeypatch.setattr(dispatch, "_told", set())


def choose(implementation="auto", dtype="float32"):
    return dispatch.use_native(implementation, "stss", dtype)


def operations(function, *arguments):
    """Op types of a traced tf.function and of all that it calls."""
    graph = function.get_concrete_function(*arguments).graph.as_graph_def()
    nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
    return {node.op for node in nodes}


# --- XLA --------------------------------------------------------------------------------------------------------------


def test_xla_is_seen_wherever_it_begins(as_if_native):
    seen = {}

    def note(name, tensor):
        seen[name] = choose()
        return tensor + 1

    def loop(tensor):
        return tf.while_loop(lambda t: tf.reduce_sum(t) < 9, lambda t: (note("loop", t),), [tensor])[0]

    inner = tf.function(lambda tensor: note("inner", tensor))
    both = tf.function(lambda tensor: inner(note("outer", loop(tensor))), jit_compile=True)
    both(tf.ones(2))
    assert seen == {"loop": False, "outer": False, "inner": False}

    seen.clear()
    note("eager", tf.ones(2))
    tf.function(lambda tensor: note("graph", loop(tensor)))(tf.ones(2))
    tf.function(lambda tensor: note("explicitly not", tensor), jit_compile=False)(tf.ones(2))
    list(tf.data.Dataset.range(2).map(lambda number: note("data", number)))
    assert seen == dict.fromkeys(["eager", "graph", "loop", "explicitly not", "data"], True)
    assert choose()  # nothing of it is left


def test_native_in_xla_is_refused_with_the_reason(as_if_native):
    with pytest.raises(RuntimeError, match="compiled by XLA"):
        tf.function(lambda tensor: choose("native") and tensor, jit_compile=True)(tf.ones(2))


def test_xla_computes_the_reference(native):
    expected = np.asarray(stss(CLIP, **ARGUMENTS, implementation="reference"))
    compiled = tf.function(lambda clip: stss(clip, **ARGUMENTS), jit_compile=True)
    plain = tf.function(lambda clip: stss(clip, **ARGUMENTS))
    assert "KerasStss>Stss" not in operations(compiled, CLIP)
    assert "KerasStss>Stss" in operations(plain, CLIP)
    for function in (compiled, plain):
        np.testing.assert_allclose(function(CLIP), expected, rtol=0, atol=1e-5)


def test_a_keras_model_that_xla_compiles(native):
    keras.utils.set_random_seed(0)
    clip = keras.Input((None, None, None, 8))
    model = keras.Model(clip, SELFYBlock((0, 1), **SMALL)(clip))
    plain = model.predict(CLIP, verbose=0)
    model.compile("sgd", "mse", jit_compile=True)
    np.testing.assert_allclose(model.predict(CLIP, verbose=0), plain, rtol=0, atol=1e-5)
    assert np.isfinite(model.train_on_batch(CLIP, CLIP))


def test_strategies_whose_devices_lack_the_library(as_if_native, monkeypatch):
    assert surroundings.obstacle() is None
    monkeypatch.setattr(surroundings, "_ELSEWHERE", (tf.distribute.OneDeviceStrategy,))
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        assert not choose()
        with pytest.raises(RuntimeError, match="run by OneDeviceStrategy"):
            choose("native")
    assert choose()


def test_replicas_take_the_native_operation(native):
    code = """
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from keras_stss.ops import stss
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
clip = tf.random.normal((1, 2, 5, 5, 4), seed=1)
step = tf.function(lambda: strategy.run(lambda: stss(clip, (0, 1), (3, 3), implementation="native")))
expected = stss(clip, (0, 1), (3, 3), implementation="reference")
for part in strategy.experimental_local_results(step()):
    np.testing.assert_allclose(part, expected, rtol=0, atol=1e-5)

from keras_stss.ops import portable
with portable():
    traced = tf.function(lambda: strategy.run(lambda: stss(clip, (0, 1), (3, 3)))).get_concrete_function()
assert not [node.type for node in traced.graph.get_operations() if node.type.startswith("KerasStss")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- export -----------------------------------------------------------------------------------------------------------


def test_portable(as_if_native):
    assert choose()
    with portable():
        assert not choose() and not choose("native")
        with portable():
            assert not choose()
        assert not choose()
        others = []
        thread = threading.Thread(target=lambda: others.append(choose()))
        thread.start()
        thread.join()
        assert others == [False]  # replicas of a strategy are traced in threads of their own
    assert choose()
    with pytest.raises(KeyError), portable():
        raise KeyError
    assert choose()


def test_an_export_holds_stock_operations_while_the_native_one_is_in_use(native, tmp_path):
    clip = keras.Input((None, None, None, 8))
    model = keras.Model(clip, SELFYBlock((0, 1), implementation="native", **SMALL)(clip))
    expected = model(CLIP)
    native_graph = tf.function(lambda frames: model(frames))
    assert "KerasStss>Stss" in operations(native_graph, CLIP)
    with portable():
        model.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(tmp_path / "model")
    graph = served.signatures["serving_default"].graph.as_graph_def()
    used = {node.op for function in graph.library.function for node in function.node_def} | {n.op for n in graph.node}
    assert not [name for name in used if name.startswith("KerasStss")]
    np.testing.assert_allclose(served.serve(CLIP), expected, rtol=0, atol=1e-5)
    assert "KerasStss>Stss" in operations(tf.function(lambda frames: model(frames)), CLIP)


def test_a_keras_file_of_a_native_model_loads_without_the_library(native, tmp_path, monkeypatch):
    clip = keras.Input((None, None, None, 8))
    model = keras.Model(clip, SELFYBlock((0, 1), **SMALL)(clip))
    expected = model(CLIP)
    model.save(tmp_path / "model.keras")
    monkeypatch.setenv("KERAS_STSS_NATIVE", "0")
    assert not native_status()["available"]
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].implementation == "auto"
    np.testing.assert_allclose(loaded(CLIP), expected, rtol=0, atol=1e-5)


# --- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes_of_the_native_operation(dtype, as_if_native):
    assert choose("auto", dtype) and choose("native", dtype) and not choose("reference", dtype)


def test_float64_takes_the_reference(as_if_native):
    assert not choose("auto", "float64")
    assert stss(CLIP.astype("float64"), **ARGUMENTS).dtype == "float64"
    with pytest.raises(ValueError, match=r"takes float32, float16, bfloat16; .* Received: dtype=float64"):
        stss(CLIP.astype("float64"), **ARGUMENTS, implementation="native")


@pytest.mark.parametrize("given", ["Native", "", None, True, 3, ["auto"], np.array(["auto"]), b"auto"])
def test_no_implementation(given):
    for call in (
        lambda: stss(CLIP, **ARGUMENTS, implementation=given),
        lambda: SpatioTemporalSelfSimilarity(**ARGUMENTS, implementation=given),
        lambda: dispatch.use_native(given, "stss"),
    ):
        with pytest.raises(ValueError, match=r"implementation must be one of .* Received: implementation="):
            call()
    with pytest.raises(ValueError, match="similarity must be one of"):
        stss(CLIP, **ARGUMENTS, similarity=given)


def test_other_backends_take_the_reference(as_if_native, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert not choose()
    with pytest.raises(RuntimeError, match="the Keras backend is jax"):
        choose("native")


def test_what_runs_is_said_once(as_if_native, caplog):
    with caplog.at_level(logging.INFO, "keras_stss"):
        assert choose() and choose()
        assert not choose("auto", "float64") and not choose("auto", "float64")
        assert not choose("reference")
    assert caplog.messages == [
        "native operations: as if they were there",
        "stss runs in its slower reference form: it takes float32, float16, bfloat16. Received: dtype=float64",
    ]


def test_status(native):
    status = native_status()
    assert status["available"] and status["reason"] is None and status["tensorflow"] == tf.__version__
    assert status["instruction_set"] in ("plain", "avx2", "avx512")
    assert f"CPU kernels for {status['instruction_set']}" in dispatch._summary()


def test_implementation_in_a_config(monkeypatch):
    def model(block):
        data = {"format": "clips", "root": ".", "annotations": "a.csv", "frames": 4, "resize": 40, "crop": 32}
        config = {"backbone": "resnet10", "width": 8, "insert": {"res3": {"selfy": {**SMALL, **block}}}}
        return parse_config({"data": data, "model": config})

    assert model({}).model.insert["res3"].selfy.implementation == "auto"
    built = build_model(model({"implementation": "reference"}), classes=3)
    assert built.get_layer("res3_selfy").implementation == "reference"
    with pytest.raises(ConfigError, match=r"res3\.selfy\.implementation: .*'auto', 'native' or 'reference'"):
        model({"implementation": "fast"})
    monkeypatch.setenv("KERAS_STSS_NATIVE", "0")
    with pytest.raises(ConfigError, match=r"res3\.selfy\.implementation: native is not possible: KERAS_STSS_NATIVE=0"):
        build_model(model({"implementation": "native"}), classes=3)
