"""Layers, blocks and models on Keras' other backends: the same weights give TensorFlow's numbers.

Run as a program, this file computes the numbers on the backend that KERAS_BACKEND names.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
data: {format: clips, root: ., annotations: a.csv, frames: 4, resize: 40, crop: 32}
model:
  backbone: resnet10
  width: 8
  temporal: tsm
  insert:
    res3: {selfy: {channels: 6, window: [3, 5], extraction_channels: [4, 6], integration_channels: [6, 7]}}
"""
SMALL = {"channels": 6, "window": (5, 3), "extraction_channels": (4, 8), "integration_channels": (6, 7)}


def sample(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomize(layer):
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        if "seed_generator" in weight.path:
            continue
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape).astype("float32"))
        else:
            fan_in = np.prod(weight.shape[:-1]) if len(weight.shape) > 1 else 25
            weight.assign((rng.normal(size=weight.shape) / np.sqrt(fan_in)).astype("float32"))


def parts():
    """{name: (layer, input shape)}."""
    from keras_stss import blocks, layers

    clip = (2, 3, 6, 7, 8)
    return {
        "conv": (layers.ConvBN(5, 3, 2), clip),
        "map_conv": (layers.MapConvBN(5, 3, 2), (2, 3, 4, 2, 5, 7, 3)),
        "similarity": (layers.SpatioTemporalSelfSimilarity((-2, 1), (5, 3)), clip),
        "similarity_dot": (layers.SpatioTemporalSelfSimilarity((0, 5), (9, 9), "dot"), clip),
        "squeeze": (layers.Displacement((1, -2), (5, 3), temperature=0.2), clip),
        "squeeze_plain": (layers.Displacement((1,), (9, 9), sigma=None, temperature=0.2), clip),
        "separable_conv": (layers.SeparableConvBN(5, (7, 3)), clip),
        "extract": (layers.ConvExtractor((4, 6, 8)), (1, 2, 3, 2, 2, 9, 7)),
        "extract_halved_late": (layers.ConvExtractor((4, 5, 6, 8)), (1, 2, 3, 2, 2, 5, 9)),
        "extract_deep": (layers.ConvExtractor((4, 6), depth=3), (1, 2, 3, 2, 3, 5, 7)),
        "extract_mlp": (layers.MLPExtractor((4, 6)), (1, 2, 3, 2, 2, 5, 7)),
        "extract_soft_argmax": (layers.SoftArgmaxExtractor(0.2), (1, 2, 3, 2, 2, 5, 7)),
        "extract_kernel_soft_argmax": (layers.KernelSoftArgmaxExtractor(2.0, 0.2), (1, 2, 3, 2, 2, 5, 7)),
        "similarity_embedded": (layers.SpatioTemporalSelfSimilarity((-2, 0, 1), (5, 3), "embedded_gaussian"), clip),
        "integrate_fc": (layers.FCIntegrator(5, 4), (1, 3, 3, 4, 2, 6)),
        "integrate_mlp": (layers.MLPIntegrator(5, (6, 7)), (1, 3, 3, 4, 2, 6)),
        "resize_down": (layers.ResizeFrames(0.5), clip),
        "integrate": (layers.ConvIntegrator(5, (6, 7), upsample=2), (1, 3, 3, 4, 2, 6)),
        "integrate_released": (layers.ConvIntegrator(5, (6, 7), 2, "released"), (1, 3, 3, 4, 2, 6)),
        "shift": (layers.TemporalShift(), clip),
        "pool": (layers.FrameMaxPooling(), clip),
        "normalize": (layers.NormalizeFrames(), (1, 2, 5, 4, 3)),
        "motion_squeeze": (blocks.MotionSqueezeBlock(6, (5, 3), temperature=0.2, transform_channels=(4, 5)), clip),
        "stcb": (blocks.STCBlock(4, strides=4), clip),
        "selfy_double": (blocks.SELFYBlock((0, 1), (3, 3), "embedded_gaussian", 6, 0.5, "mlp", integration="fc"), clip),
        "selfy": (blocks.SELFYBlock((-1, 0, 2), **SMALL), clip),
        "selfy_released": (blocks.SELFYBlock((0, 1), variant="released", strides=1, **SMALL), clip),
    }


def compute(folder):
    """All numbers under comparison, by name."""
    import keras

    import keras_stss
    from keras_stss.models import load_model

    numbers = {}

    def keep(name, tensor):
        numbers[name] = keras.ops.convert_to_numpy(tensor)

    # All layers in one model of many outputs, so that a backend compiles once.
    layers = parts()
    inputs = {name: keras.Input(shape[1:], name=name) for name, (_, shape) in layers.items()}
    together = keras.Model(inputs, {name: layer(inputs[name]) for name, (layer, _) in layers.items()})
    randomize(together)
    samples = {name: np.abs(sample(shape)) for name, (_, shape) in layers.items()}
    for name, outputs in together.predict_on_batch(samples).items():
        keep(name, outputs)

    # One step of plain gradient descent through both forms of the block: gradients and moving statistics.
    clip = keras.Input((None, None, None, 8))
    both = [layers["selfy"][0], layers["selfy_released"][0]]
    model = keras.Model(clip, keras.layers.Add()([layer(clip) for layer in both]))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    keep("loss", model.train_on_batch(sample((2, 3, 6, 7, 8)), sample((2, 3, 6, 7, 8), 1)))
    for layer in both:
        for weight in layer.weights:
            keep(f"{layer.variant} {'/'.join(weight.path.split('/')[1:])} after a step", weight)

    model = keras_stss.build_model(folder / "small.yaml", classes=3)
    randomize(model)
    clips = np.random.default_rng(2).integers(0, 256, (2, 4, 33, 40, 3), np.uint8)
    keep("model", model.predict_on_batch(clips))
    own = folder / f"{keras.backend.backend()}.keras"
    model.save(own)
    for written, loaded in zip(model.get_weights(), load_model(own).get_weights()):
        np.testing.assert_array_equal(written, loaded)
    if own.name != "tensorflow.keras":
        keep("model of tensorflow", load_model(folder / "tensorflow.keras").predict_on_batch(clips))
    return numbers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backends")
    (folder / "small.yaml").write_text(CONFIG, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    import keras

    if keras.backend.backend() != "tensorflow":
        pytest.skip(f"the tests run on {keras.backend.backend()}, so there are no numbers of TensorFlow's")
    return compute(folder)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_backend(backend, folder, expected):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    # Compiling takes JAX longer than computing these few numbers.
    environment |= {"CUDA_VISIBLE_DEVICES": "", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    result = subprocess.run([sys.executable, __file__, folder], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [backend]
    with np.load(folder / f"{backend}.npz") as found:
        assert set(found.files) == {*expected, "model of tensorflow"}
        differences = {}
        for name in found.files:
            reference = expected["model" if name == "model of tensorflow" else name]
            assert found[name].shape == reference.shape, name
            differences[name] = np.abs(found[name] - reference).max() / max(np.abs(reference).max(), 1e-3)
    print(f"largest relative difference: {max(differences.values()):.1e}")
    far = {name: value for name, value in differences.items() if not value < 1e-5}
    assert not far


if __name__ == "__main__":
    place = Path(sys.argv[1])
    # Keras looks for TensorFlow on every backend; here it is as if there were none.
    sys.modules["tensorflow"] = None
    outcome = compute(place)
    import keras

    np.savez(place / f"{keras.backend.backend()}.npz", **outcome)
    print(keras.backend.backend())
