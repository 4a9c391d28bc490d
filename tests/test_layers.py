"""One contract for every public layer and block, and each layer's numbers against plain NumPy."""

import inspect
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from layer_cases import CASES

import keras_stss.blocks
import keras_stss.layers
from keras_stss.blocks import MotionSqueezeBlock, SELFYBlock, STCBlock
from keras_stss.layers import (
    ClipMaxPooling,
    ConvBN,
    ConvExtractor,
    ConvIntegrator,
    Displacement,
    FCIntegrator,
    FrameMaxPooling,
    KernelSoftArgmaxExtractor,
    MapConvBN,
    MLPExtractor,
    MLPIntegrator,
    NormalizeFrames,
    ResizeFrames,
    SeparableConvBN,
    SoftArgmaxExtractor,
    SpatioTemporalSelfSimilarity,
    TemporalShift,
)

EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
EVERY_PRECISION = pytest.mark.parametrize(
    ("case", "precision"),
    [
        pytest.param(case, precision, id=f"{name}-{precision}")
        for name, case in CASES.items()
        for precision in case.precisions
    ],
)


def sample(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomize(layer, seed=0):
    """Values away from every initializer's, so that no scale is zero and no statistic trivial."""
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        if "seed_generator" in weight.path:
            continue
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        else:
            fan_in = np.prod(weight.shape[:-1]) if len(weight.shape) > 1 else 25
            weight.assign(rng.normal(size=weight.shape) / np.sqrt(fan_in))


def make(case, shape=None):
    layer = case.layer(**case.arguments)
    layer.build(shape or case.unknown)
    randomize(layer)
    return layer


def count(weights):
    return sum(int(np.prod(weight.shape)) for weight in weights)


@pytest.fixture
def policy():
    """Sets a dtype policy for one test."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


def test_every_public_layer_has_a_case():
    # Several tensors in or out, and bytes of a number of frames of its own: test_ensemble.py and test_features.py.
    others = {"MeanScores", "MotionFeatures", "SampleFrames"}
    public = set(keras_stss.layers.__all__) | set(keras_stss.blocks.__all__)
    assert public - others == {case.layer.__name__ for case in CASES.values()}


@EVERY_CASE
def test_config_round_trip(case):
    layer = make(case, case.shape)
    inputs = sample(case.shape)
    expected = layer(inputs)
    config = layer.get_config()
    for key, value in case.arguments.items():
        assert config[key] == value, key
    parameters = inspect.signature(case.layer.__init__).parameters.values()
    own = {each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD} - {"self"}
    assert own <= set(config)
    text = json.dumps(keras.saving.serialize_keras_object(layer))
    for twin in (case.layer.from_config(config), keras.saving.deserialize_keras_object(json.loads(text))):
        # JSON knows no tuples.
        assert json.dumps(twin.get_config()) == json.dumps(config)
        if not twin.built:
            twin.build(case.shape)
        twin.set_weights(layer.get_weights())
        np.testing.assert_array_equal(twin(inputs), expected)


@EVERY_CASE
def test_file_round_trip(case, tmp_path):
    inputs = keras.Input(batch_shape=case.unknown)
    model = keras.Model(inputs, case.layer(**case.arguments)(inputs))
    randomize(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[-1]) is case.layer
    for shape in (case.shape, case.other):
        np.testing.assert_array_equal(loaded(sample(shape)), model(sample(shape)))


@EVERY_PRECISION
def test_symbolic_shape_is_the_eager_shape(case, precision, policy):
    policy(precision)
    layer = make(case)
    assert layer.compute_output_shape(case.shape) == case.output
    for shape in (case.shape, case.other):
        eager = layer(sample(shape))
        known = layer(keras.Input(batch_shape=shape))
        free = layer(keras.Input(batch_shape=case.unknown))
        assert known.shape == tuple(eager.shape)
        assert known.dtype == free.dtype == eager.dtype == keras.config.dtype_policy().compute_dtype
        assert len(free.shape) == len(eager.shape)
        assert all(size in (None, number) for size, number in zip(free.shape, eager.shape))
        # What does not depend on B, T, H and W is known before they are.
        assert [size for size in free.shape if size] == list(eager.shape[-sum(map(bool, free.shape)) :])
        assert free.shape[-1] is not None
        assert layer.compute_output_shape(case.unknown) == free.shape
    assert tuple(layer(sample(case.shape)).shape) == case.output


@EVERY_CASE
def test_weight_count(case):
    layer = make(case)
    assert (count(layer.trainable_weights), count(layer.non_trainable_weights)) == case.weights
    paths = [weight.path for weight in layer.weights]
    assert len(set(paths)) == len(paths)


@EVERY_CASE
def test_one_instance_serves_any_size(case):
    layer = make(case, case.shape)
    for shape in (case.shape, case.other, case.shape):
        alone = make(case, shape)
        assert alone is not layer
        np.testing.assert_array_equal(layer(sample(shape)), alone(sample(shape)))


@EVERY_PRECISION
def test_training_step(case, precision, policy):
    """One compiled step through model.fit: finite loss, and every trainable weight before and in the layer moves."""
    policy(precision)
    inputs = keras.Input(batch_shape=case.unknown)
    stem = keras.layers.Dense(case.shape[-1], "softplus", name="stem")
    model = keras.Model(inputs, case.layer(**case.arguments)(stem(inputs)))
    randomize(model)
    optimizer = keras.optimizers.SGD(1.0)
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
    model.compile(optimizer, "mse", auto_scale_loss=False)
    before = model.get_weights()
    history = model.fit(sample(case.shape), sample(case.output, 1), batch_size=case.shape[0], verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert any("stem" in weight.path for weight in model.trainable_weights)
    for weight, old in zip(model.weights, before):
        new = weight.numpy()
        assert np.isfinite(new).all(), weight.path
        assert weight.dtype == "float32"
        assert not np.array_equal(new, old), f"{weight.path} has not moved"
    for shape in (case.shape, case.other):
        assert np.isfinite(tf.cast(model(sample(shape)), "float32")).all()


def conv_by_hand(inputs, kernel, strides, radii):
    """2-D convolution by PyTorch's rule: the same zeros on both sides, then every stride-th place."""
    padded = np.pad(inputs.astype("float64"), ((0, 0), (radii[0],) * 2, (radii[1],) * 2, (0, 0)))
    height, width = ((padded.shape[a + 1] - kernel.shape[a]) // strides[a] + 1 for a in (0, 1))
    outputs = np.zeros((len(inputs), height, width, kernel.shape[-1]))
    for y, x in np.ndindex(height, width):
        top, left = y * strides[0], x * strides[1]
        patch = padded[:, top : top + kernel.shape[0], left : left + kernel.shape[1]]
        outputs[:, y, x] = np.tensordot(patch, kernel, 3)
    return outputs


def normalize_by_hand(maps, gamma, beta, mean, variance):
    return (maps - mean) / np.sqrt(variance + 1e-5) * gamma + beta


@pytest.mark.parametrize("size", [(6, 7), (9, 8), (1, 2)])
@pytest.mark.parametrize(
    ("kernel", "strides"), [(3, 1), (3, 2), (7, 2), (1, 2), (1, 1), ((3, 5), (2, 1)), ((5, 1), (1, 3))]
)
def test_conv_bn_pads_as_pytorch_does(size, kernel, strides):
    layer = ConvBN(3, kernel, strides)
    inputs = sample((2, *size, 2))
    layer.build(inputs.shape)
    randomize(layer)
    weights = [weight.numpy().astype("float64") for weight in layer.weights]
    radii = [(side - 1) // 2 for side in weights[0].shape[:2]]
    maps = conv_by_hand(inputs, weights[0], (strides, strides) if isinstance(strides, int) else strides, radii)
    expected = np.maximum(normalize_by_hand(maps, *weights[1:]), 0.0)
    np.testing.assert_allclose(layer(inputs), expected, rtol=1e-5, atol=1e-5)


def test_conv_bn_learns_as_pytorch_does():
    """Batch statistics while training, moved by a tenth; epsilon 1e-5; no bias."""
    layer = ConvBN(3, 3, padding="valid", activation=None)
    inputs = sample((4, 3, 6, 7, 2))
    layer.build(inputs.shape)
    randomize(layer)
    kernel, gamma, beta, mean, variance = (weight.numpy().astype("float64") for weight in layer.weights)
    maps = conv_by_hand(inputs.reshape(12, 6, 7, 2), kernel, (1, 1), (0, 0))
    now = maps.mean((0, 1, 2)), maps.var((0, 1, 2))
    outputs = layer(inputs, training=True).numpy()
    expected = normalize_by_hand(maps, gamma, beta, *now)
    np.testing.assert_allclose(outputs.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.bn.moving_mean, 0.9 * mean + 0.1 * now[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.bn.moving_variance, 0.9 * variance + 0.1 * now[1], rtol=1e-5, atol=1e-6)


MAP_CONVS = pytest.mark.parametrize(
    ("size", "kernel", "strides", "padding"),
    [
        ((9, 9), 3, 1, "same"),
        ((9, 9), 3, 2, "same"),
        ((5, 8), 3, 2, "same"),
        ((3, 3), 3, 1, "valid"),
        ((7, 6), (3, 5), (2, 1), "same"),
        ((7, 6), (4, 3), (1, 2), "valid"),
        ((1, 2), 3, 2, "same"),
        ((5, 4), 1, 1, "same"),
        ((5, 4), (5, 4), 1, "valid"),
    ],
)


def map_and_plain(size, kernel, strides, padding):
    """MapConvBN and ConvBN with the same weights."""
    pair = MapConvBN(5, kernel, strides, padding), ConvBN(5, kernel, strides, padding)
    for layer in pair:
        layer.build((2, 3, *size, 2))
    randomize(pair[0])
    assert [tuple(weight.shape) for weight in pair[0].weights] == [tuple(weight.shape) for weight in pair[1].weights]
    pair[1].set_weights(pair[0].get_weights())
    return pair


@MAP_CONVS
@pytest.mark.parametrize("training", [False, True])
def test_map_conv_is_conv(size, kernel, strides, padding, training):
    """Outputs, gradients and moving statistics."""
    inputs = tf.constant(sample((2, 3, *size, 2)))
    outputs, gradients, layers = [], [], map_and_plain(size, kernel, strides, padding)
    for layer in layers:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            found = layer(inputs, training=training)
            loss = tf.reduce_sum(found * sample(found.shape, 1))
        outputs.append(found.numpy())
        gradients.append(tape.gradient(loss, [inputs, *(weight.value for weight in layer.trainable_weights)]))
    assert outputs[0].any()
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)
    for found, expected in zip(*gradients):
        scale = max(np.abs(expected).max(), 1.0)
        np.testing.assert_allclose(found / scale, expected / scale, atol=2e-5)
    for found, expected in zip(layers[0].get_weights(), layers[1].get_weights()):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_map_conv_moves_its_statistics_only_in_training():
    inputs, (layer, _) = sample((2, 3, 5, 5, 2)), map_and_plain((5, 5), 3, 1, "same")
    before = layer.bn.moving_mean.numpy(), layer.bn.moving_variance.numpy()
    layer(inputs)
    np.testing.assert_array_equal(layer.bn.moving_mean, before[0])
    layer.trainable = False
    still = layer(inputs, training=True)
    np.testing.assert_array_equal(layer.bn.moving_mean, before[0])
    np.testing.assert_array_equal(layer.bn.moving_variance, before[1])
    np.testing.assert_array_equal(still, layer(inputs, training=False))
    layer.trainable = True
    layer(inputs, training=True)
    assert np.all(layer.bn.moving_mean != before[0])
    assert np.all(layer.bn.moving_variance != before[1])


@pytest.mark.parametrize("size", [(6, 7), (9, 8), (1, 1), (2, 3)])
def test_pool_pads_as_pytorch_does(size):
    """The largest of each 3×3 window at every second place, minus infinity outside."""
    frames = np.maximum(sample((2, 3, *size, 4)), 0.0)
    height, width = ((side + 1) // 2 for side in size)
    padded = np.pad(frames, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    expected = np.empty((2, 3, height, width, 4))
    for y, x in np.ndindex(height, width):
        expected[:, :, y, x] = padded[:, :, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3].max((2, 3))
    np.testing.assert_array_equal(FrameMaxPooling()(frames), expected)


@pytest.mark.parametrize("shape", [(4, 6, 7), (5, 9, 8), (1, 1, 2)])
@pytest.mark.parametrize(("size", "strides"), [((1, 3, 3), (1, 2, 2)), (3, 2), (2, (2, 2, 2)), (3, 1), ((3, 1, 1), 1)])
def test_clip_pool_is_the_largest_of_each_box(shape, size, strides):
    clip = sample((2, *shape, 3))
    expected = keras.layers.MaxPooling3D(size, strides, "same", "channels_last")(clip)
    np.testing.assert_array_equal(ClipMaxPooling(size, strides)(clip), expected)


@pytest.mark.parametrize("wrong", [{"pool_size": (3, 3)}, {"strides": 0}])
def test_clip_pool_of_no_box(wrong):
    with pytest.raises(ValueError, match=r"whole numbers from 1, one or three each\. Received: pool_size="):
        ClipMaxPooling(**wrong)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("given", ["uint8", "int32", "float32"])
def test_normalize_frames(precision, given, policy):
    """ImageNet's mean and deviation, from bytes; half precision rounds the result, not the pixels."""
    policy(precision)
    pixels = np.arange(256).repeat(3).reshape(1, 1, 16, 16, 3)
    found = NormalizeFrames()(pixels.astype(given))
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert found.dtype == keras.config.dtype_policy().compute_dtype
    tolerance = {"float32": 1e-6, "mixed_float16": 2**-10, "mixed_bfloat16": 2**-7}[precision]
    np.testing.assert_allclose(tf.cast(found, "float32"), expected, rtol=tolerance, atol=2e-6)


def test_extractor_looks_at_one_window_at_a_time():
    """The map at one position and offset says nothing about the others."""
    layer = make(CASES["extract-oblong"])
    inputs = sample((1, 2, 3, 2, 3, 7, 5))
    changed = inputs.copy()
    changed[0, 1, 2, 0, 1] += 1.0
    moved = np.any(layer(inputs).numpy() != layer(changed).numpy(), axis=-1)
    assert moved[0, 1, 2, 0, 1]
    assert moved.sum() == 1


def test_released_integrator_writes_every_second_position():
    """A 1×1 transposed convolution of stride 2: in between stands the normalisation's shift alone."""
    layer = make(CASES["integrate-released"])
    outputs = layer(sample((2, 3, 3, 2, 2, 4))).numpy()
    shift = layer.bn.beta - layer.bn.moving_mean * layer.bn.gamma / np.sqrt(layer.bn.moving_variance + 1e-5)
    np.testing.assert_allclose(outputs[:, :, 1::2], np.broadcast_to(shift, outputs[:, :, 1::2].shape), atol=1e-6)
    np.testing.assert_allclose(outputs[..., 1::2, :], np.broadcast_to(shift, outputs[..., 1::2, :].shape), atol=1e-6)
    assert np.abs(outputs[:, :, ::2, ::2] - shift).max(axis=(0, 1, 2, 3)).min() > 0.1


def test_paper_integrator_repeats_its_neighbours():
    outputs = make(CASES["integrate"])(sample((2, 3, 3, 2, 2, 4))).numpy()
    np.testing.assert_array_equal(outputs[:, :, ::2], outputs[:, :, 1::2])
    np.testing.assert_array_equal(outputs[..., ::2, :], outputs[..., 1::2, :])


def test_shift_layer():
    frames = sample((2, 3, 2, 2, 9))
    outputs = TemporalShift(4)(frames).numpy()
    np.testing.assert_array_equal(outputs[:, :-1, ..., :2], frames[:, 1:, ..., :2])
    np.testing.assert_array_equal(outputs[:, 1:, ..., 2:4], frames[:, :-1, ..., 2:4])
    np.testing.assert_array_equal(outputs[..., 4:], frames[..., 4:])
    assert not outputs[:, -1, ..., :2].any()
    assert not outputs[:, 0, ..., 2:4].any()
    few = sample((2, 3, 2, 2, 3))
    np.testing.assert_array_equal(TemporalShift(4)(few), few)


@pytest.mark.parametrize(
    ("layer", "arguments", "received"),
    [
        (ConvBN, {"filters": 3, "kernel_size": 3, "padding": "causal"}, "padding='causal'"),
        (ConvBN, {"filters": 3, "kernel_size": (3, 4)}, "kernel_size=(3, 4)"),
        (MapConvBN, {"filters": 3, "kernel_size": 3, "padding": "full"}, "padding='full'"),
        (MapConvBN, {"filters": 3, "kernel_size": (3, 4)}, "kernel_size=(3, 4)"),
        (ConvExtractor, {"channels": ()}, "channels=()"),
        (ConvExtractor, {"depth": 2}, "depth=2"),
        (MLPExtractor, {"channels": ()}, "channels=()"),
        (SoftArgmaxExtractor, {"temperature": 0}, "temperature=0"),
        (KernelSoftArgmaxExtractor, {"sigma": -1.0}, "sigma=-1.0"),
        (FCIntegrator, {"filters": 3, "upsample": 3}, "upsample=3"),
        (MLPIntegrator, {"filters": 3, "channels": ()}, "channels=()"),
        (ResizeFrames, {"scale": 4}, "scale=4"),
        (ConvIntegrator, {"filters": 3, "channels": []}, "channels=[]"),
        (ConvIntegrator, {"filters": 3, "upsample": 3}, "upsample=3"),
        (ConvIntegrator, {"filters": 3, "variant": "mine"}, "variant='mine'"),
        (NormalizeFrames, {"mean": (0.5, 0.5)}, "mean=(0.5, 0.5)"),
        (NormalizeFrames, {"std": (1.0, 0.0, 1.0)}, "std=(1.0, 0.0, 1.0)"),
        (TemporalShift, {"divisor": 1}, "divisor=1"),
        (SpatioTemporalSelfSimilarity, {"window": (4, 4)}, "window=(4, 4)"),
        (SpatioTemporalSelfSimilarity, {"similarity": "l2"}, "similarity='l2'"),
        (SeparableConvBN, {"filters": 3, "kernel_size": 4}, "kernel_size=4"),
        (Displacement, {"window": (4, 4)}, "window=(4, 4)"),
        (Displacement, {"sigma": -1.0}, "sigma=-1.0"),
        (MotionSqueezeBlock, {"temperature": 0}, "temperature=0"),
        (MotionSqueezeBlock, {"channels": 0}, "channels=0"),
        (SELFYBlock, {"temporal_offsets": (1, 1)}, "temporal_offsets=(1, 1)"),
        (SELFYBlock, {"extraction_channels": ()}, "channels=()"),
        (SELFYBlock, {"integration_channels": ()}, "channels=()"),
        (SELFYBlock, {"variant": "mine"}, "variant='mine'"),
        (SELFYBlock, {"strides": 3}, "=3"),
    ],
)
def test_constructors_refuse(layer, arguments, received):
    with pytest.raises(ValueError, match=re.escape(received)) as caught:
        layer(**arguments)
    assert "Received: " in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "shape", "says"),
    [
        (MapConvBN(3, 3), (None, None, None, 2), "must be known"),
        (MapConvBN(3, 5, padding="valid"), (2, 4, 7, 2), "does not fit"),
        (ConvExtractor(), (1, 2, 3, 3, 2, None, 9), "U and V known"),
    ],
)
def test_build_refuses(layer, shape, says):
    with pytest.raises(ValueError, match=f"{says}.*Received: shape="):
        layer.build(shape)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (ConvExtractor(), (1, 1, 2, 2, 5, 9)),
        (ConvExtractor(), (1, 1, 2, 2, 5, 9, None)),
        (SoftArgmaxExtractor(), (1, 1, 2, 2, 5, 9)),
        (KernelSoftArgmaxExtractor(), (1, 1, 2, 2, 5, 9, None)),
        (MLPExtractor(), (1, 1, 2, 2, 5, None, 9)),
        (ConvIntegrator(3), (1, 2, 4, 4, 6)),
        (FCIntegrator(3), (1, 2, 4, 4, 6)),
        (MLPIntegrator(3), (1, 2, 4, 4, None, 6)),
        (STCBlock(), (2, 3, 4, 4, None)),
        (TemporalShift(), (2, 4, 4, 8)),
        (TemporalShift(), (2, 3, 4, 4, None)),
        (SpatioTemporalSelfSimilarity(), (2, 4, 4, 8)),
        (Displacement(), (2, 4, 4, 8)),
        (MotionSqueezeBlock(), (2, 4, 4, 8)),
        (MotionSqueezeBlock(), (2, 3, 4, 4, None)),
        (SELFYBlock(), (2, 4, 4, 8)),
        (SELFYBlock(), (2, 3, 4, 4, None)),
    ],
)
def test_shapes_are_refused_by_name(layer, shape):
    with pytest.raises(ValueError, match=r"must have shape \(B, T, H, W.*Received: shape="):
        layer.build(shape)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_block_in_one_dtype_throughout(dtype):
    block = SELFYBlock(window=(3, 3), channels=4, extraction_channels=(4,), integration_channels=(4,), dtype=dtype)
    assert block(sample((1, 3, 4, 4, 4)).astype("float32")).dtype == dtype
