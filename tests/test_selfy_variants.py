"""Every form of the SELFY block that the paper's tables have: parts, resolutions, outputs, and what it sees."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_stss.blocks import SELFYBlock
from keras_stss.blocks.selfy import EXTRACTIONS, INTEGRATIONS
from keras_stss.layers import ConvBN, FCIntegrator, KernelSoftArgmaxExtractor
from keras_stss.ops.dispatch import why_not_native

SMALL = {"temporal_offsets": (-1, 0, 1), "window": (3, 5), "channels": 6}
COMBINATIONS = list(itertools.product(EXTRACTIONS, INTEGRATIONS, ("cosine", "dot", "embedded_gaussian")))


def sample(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def parameters(block):
    return sum(int(np.prod(weight.shape)) for weight in block.trainable_weights)


@pytest.mark.parametrize(
    ("number", "extraction", "integration", "similarity"),
    [(number, *parts) for number, parts in enumerate(COMBINATIONS)],
)
def test_every_combination_learns(number, extraction, integration, similarity):
    """The input's shape, and a gradient for every trainable weight and for the input."""
    options = {"extraction": extraction, "integration": integration, "similarity": similarity}
    block = SELFYBlock(strides=(0.5, 1, 2, 4)[number % 4], **options, **SMALL)
    inputs = tf.constant(sample((2, 3, 6, 7, 5)))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = block(inputs, training=True)
        loss = tf.reduce_sum((outputs - inputs) * sample(outputs.shape, 1))
    assert outputs.shape == inputs.shape
    weights = block.trainable_weights
    found = tape.gradient(loss, [inputs, *(weight.value for weight in weights)])
    for name, gradient in zip(["input", *(weight.path for weight in weights)], found):
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 1e-7, name


def test_parameters_at_the_papers_size():
    """By hand, for an input of 128 channels: convolutions without biases, two numbers a normalised channel."""
    reduce = 9 * 128 * 128 + 2 * 128
    conv = 9 * (1 * 4 + 4 * 16 + 16 * 64 + 64 * 64) + 2 * (4 + 16 + 64 + 64)
    conv3d = 27 * (1 * 4 + 4 * 16 + 16 * 64 + 64 * 64) + 2 * (4 + 16 + 64 + 64)
    mlp = 81 * 64 + 3 * 64 * 64 + 8 * 64
    fuse = 5 * 64 * 128 + 2 * 128
    spatial, pointwise = 4 * (9 * 64 * 64 + 2 * 64), 4 * (64 * 64 + 2 * 64)
    expected = {
        ("conv", "conv"): conv + spatial + fuse,
        ("conv", "mlp"): conv + pointwise + fuse,
        ("conv", "fc"): conv + fuse,
        ("conv3d", "conv"): conv3d + spatial + fuse,
        ("mlp", "fc"): mlp + fuse,
        ("soft_argmax", "fc"): 5 * 2 * 128 + 2 * 128,
        ("kernel_soft_argmax", "conv"): 9 * 3 * 64 + 2 * 64 + 3 * (9 * 64 * 64 + 2 * 64) + fuse,
    }
    for (extraction, integration), number in expected.items():
        block = SELFYBlock(extraction=extraction, integration=integration)
        block.build((None, None, None, None, 128))
        assert parameters(block) == reduce + number, (extraction, integration)
    block = SELFYBlock(similarity="embedded_gaussian", channels=32)
    block.build((None, None, None, None, 128))
    assert parameters(block) == 9 * 128 * 32 + 2 * 32 + 2 * 32 * 32 + expected["conv", "conv"]


def test_selfy_s_integrates_each_position_alone():
    """Without spatial convolutions a feature at one position reaches no other after it is extracted."""
    block = SELFYBlock(integration="fc", **SMALL)
    block.build((None, None, None, None, 5))
    assert isinstance(block.integrate, FCIntegrator)
    extracted = sample((1, 2, 3, 4, 3, 64))
    changed = extracted.copy()
    changed[0, 1, 2, 0, 1] += 1.0
    moved = np.any(block.integrate(extracted).numpy() != block.integrate(changed).numpy(), axis=-1)
    assert set(zip(*np.nonzero(moved))) == {(0, 1, y, x) for y in (4, 5) for x in (0, 1)}


# -- resolutions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [(56, 4), (28, 2), (14, 1), (7, 0.5)], ids=["res2", "res3", "res4", "res5"])
def test_every_position_is_compared_at_14(position):
    """Table 7f: the map has 14×14 positions wherever the block stands."""
    size, strides = position
    block = SELFYBlock(strides=strides, **SMALL)
    volume = block.motion_features(keras.Input((8, size, size, 4)))["similarity"]
    assert volume.shape == (None, 8, 14, 14, 3, 3, 5)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 6), (1, 1)])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_strides_of_four(size, variant):
    """Means of 2×2 positions go into the convolution of stride 2; the result is spread over 4×4 positions."""
    inputs = sample((2, 3, *size, 5))
    block = SELFYBlock(strides=4, output="r+v", variant=variant, **SMALL)
    block(inputs)
    if variant == "released":
        block.integrate.bn.gamma.assign(np.full(5, 0.7))
    halved = np.stack(
        [inputs[:, :, y : y + 2, x : x + 2].mean((2, 3)) for y in range(0, size[0], 2) for x in range(0, size[1], 2)],
        axis=2,
    ).reshape(2, 3, (size[0] + 1) // 2, (size[1] + 1) // 2, 5)
    motion = block.integrate(block.extract(block.similarity_layer(block.reduce(halved)))).numpy()
    assert motion.shape[2:4] == tuple(4 * -(-side // 4) for side in size)
    expected = inputs + motion[:, :, : size[0], : size[1]]
    expected = np.maximum(expected, 0.0) if variant == "released" else expected
    np.testing.assert_allclose(block(inputs), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(7, 7), (2, 5), (1, 1)])
def test_strides_of_a_half(size):
    """The map is twice as large, and what it gives is averaged."""
    inputs = sample((2, 3, *size, 5))
    block = SELFYBlock(strides=0.5, **SMALL)
    block(inputs)
    doubled = inputs.repeat(2, axis=2).repeat(2, axis=3)
    motion = block.integrate(block.extract(block.similarity_layer(block.reduce(doubled)))).numpy()
    motion = motion.reshape(2, 3, size[0], 2, size[1], 2, 5).mean((3, 5))
    assert motion.any()
    np.testing.assert_allclose(block(inputs), inputs + motion, atol=1e-5)


# -- outputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", [0.5, 2])
def test_motion_alone(strides):
    """R is what R + V adds: not below zero. Added outside, two blocks side by side are one sum."""
    inputs = sample((2, 3, 7, 6, 5))
    both, alone = (SELFYBlock(strides=strides, output=output, **SMALL) for output in ("r+v", "r"))
    both(inputs), alone(inputs)
    alone.set_weights(both.get_weights())
    motion = alone(inputs).numpy()
    assert motion.min() >= 0.0 and motion.max() > 0.05
    np.testing.assert_array_equal(both(inputs), motion + inputs)


def test_the_input_alone_has_no_weights():
    block, inputs = SELFYBlock(output="v", **SMALL), sample((2, 3, 5, 6, 4))
    np.testing.assert_array_equal(block(inputs, training=True), inputs)
    assert not block.weights
    assert block.motion_features(inputs) == {}


# -- what it sees ---------------------------------------------------------------------------------------------------


def drifting(frames=4, size=12, channels=32):
    """A random map that moves by 1 position down and 2 to the right a frame, round the edges, and the map at t = 0."""
    first = np.abs(sample((size, size, channels)))
    first /= np.linalg.norm(first, axis=-1, keepdims=True)
    return np.stack([np.roll(first, (t, 2 * t), axis=(0, 1)) for t in range(frames)])[None]


def transparent(channels=32, **options):
    """A block that compares the input itself."""
    block = SELFYBlock((-1, 0, 1, 2), (9, 11), channels=channels, strides=1, **options)
    block.build((None, None, None, None, channels))
    kernel = np.zeros((3, 3, channels, channels))
    kernel[1, 1] = np.eye(channels)
    block.reduce.conv.kernel.assign(kernel)
    if options.get("similarity") == "embedded_gaussian":
        block.similarity_layer.theta.kernel.assign(400.0 * np.eye(channels))
        block.similarity_layer.phi.kernel.assign(np.eye(channels))
    return block


@pytest.mark.parametrize(
    "options",
    [{}, {"extraction": "soft_argmax"}, {"extraction": "kernel_soft_argmax"}, {"similarity": "embedded_gaussian"}],
    ids=lambda options: " ".join(options.values()) or "conv",
)
def test_motion_features_of_a_drifting_map(options):
    """2 positions to the right and 1 down a frame, in positions, times the offset; sure of it under cosine."""
    seen = transparent(**options).motion_features(drifting())
    assert seen["similarity"].shape == (1, 4, 12, 12, 4, 9, 11)
    displacement, confidence = seen["displacement"].numpy(), seen["confidence"].numpy()
    assert displacement.shape == (1, 4, 12, 12, 4, 2) and confidence.shape == (1, 4, 12, 12, 4, 1)
    # The middle of frame 1, whose neighbours t - 1, t + 1 and t + 2 are in the clip, away from the edges.
    middle = displacement[0, 1, 5:8, 5:7]
    for number, offset in enumerate((-1, 0, 1, 2)):
        near = np.broadcast_to((2.0 * offset, 1.0 * offset), middle[:, :, number].shape)
        np.testing.assert_allclose(middle[:, :, number], near, atol=0.1)
    if not options.get("similarity"):
        np.testing.assert_allclose(confidence[0, 1, 5:8, 5:7], 1.0, atol=1e-4)
    # The last frame has no next one.
    np.testing.assert_allclose(displacement[0, 3, :, :, 2:], 0.0, atol=1e-5)
    assert not confidence[0, 3, :, :, 2:].any()


@pytest.mark.parametrize("strides", [0.5, 1, 2, 4])
def test_motion_features_of_symbols(strides):
    """In a functional model of unknown sizes, on the block's own weights, with its moving statistics."""
    block = SELFYBlock(strides=strides, extraction="kernel_soft_argmax", integration="fc", **SMALL)
    inputs = keras.Input((None, None, None, 5))
    model = keras.Model(inputs, block.motion_features(inputs))
    block.reduce.bn.moving_mean.assign(sample((6,), 3))
    for shape in [(2, 3, 6, 7, 5), (1, 2, 9, 4, 5)]:
        found, expected = model(sample(shape)), block.motion_features(sample(shape))
        assert set(found) == {"similarity", "displacement", "confidence"}
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-6)


# -- forms ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(why_not_native("map_conv") is not None, reason="no native operation here")
@pytest.mark.parametrize("extraction", EXTRACTIONS)
def test_native_and_reference_blocks_are_the_same(extraction):
    inputs, results = sample((2, 3, 6, 7, 5)), []
    for implementation in ("native", "reference"):
        keras.utils.set_random_seed(0)
        block = SELFYBlock(extraction=extraction, implementation=implementation, **SMALL)
        results.append(block(inputs).numpy())
    np.testing.assert_allclose(*results, atol=2e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"similarity": "embedded_gaussian", "extraction": "mlp", "integration": "fc", "strides": 4},
        {"extraction": "conv3d", "integration": "fc", "strides": 0.5, "extraction_channels": (4,)},
    ],
)
def test_compiled_step(options):
    """XLA compiles a training step of what is new."""
    inputs = keras.Input(batch_shape=(2, 3, 5, 6, 4))
    model = keras.Model(inputs, SELFYBlock(**options, **SMALL)(inputs))
    before = model.get_weights()
    model.compile("sgd", "mse", jit_compile=True)
    assert np.isfinite(model.train_on_batch(sample((2, 3, 5, 6, 4)), sample((2, 3, 5, 6, 4), 1)))
    assert not any(np.array_equal(new, old) for new, old in zip(model.get_weights(), before))


def test_defaults_are_the_papers():
    """Channels that are not given are those of the parts; those that are given go to them."""
    block = SELFYBlock()
    block.build((None, None, None, None, 4))
    assert tuple(block.extract.channels) == (4, 16, 64, 64)
    assert [type(conv) for conv in block.integrate.convs] == [ConvBN] * 4
    given = SELFYBlock(extraction="mlp", extraction_channels=[8, 9], integration="mlp", integration_channels=[7])
    given.build((None, None, None, None, 4))
    assert given.extract.channels == [8, 9] and given.integrate.channels == [7]
    kernel = SELFYBlock(extraction="kernel_soft_argmax")
    assert isinstance(kernel.extract, KernelSoftArgmaxExtractor)


def test_old_configs_still_make_a_block():
    """Those that were written before there was a choice of parts."""
    old = {
        "name": "selfy_block",
        "trainable": True,
        "temporal_offsets": [-1, 0, 1],
        "window": [9, 9],
        "similarity": "cosine",
        "channels": 6,
        "strides": 2,
        "extraction_channels": [4, 8, 8],
        "integration_channels": [6, 7],
        "implementation": "auto",
        "variant": "released",
    }
    block = SELFYBlock.from_config(old)
    inputs = sample((1, 3, 6, 7, 5))
    np.testing.assert_array_equal(block(inputs), np.maximum(inputs, 0.0))


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"extraction": "max"}, "extraction='max'"),
        ({"integration": "sum"}, "integration='sum'"),
        ({"output": "v+r"}, "output='v\\+r'"),
        ({"strides": 3}, "strides=3"),
        ({"similarity": "l2"}, "similarity='l2'"),
        ({"extraction": "soft_argmax", "extraction_channels": (4,)}, r"extraction_channels=\(4,\)"),
        ({"extraction": "kernel_soft_argmax", "extraction_channels": (4,)}, r"extraction_channels=\(4,\)"),
        ({"extraction": "mlp", "extraction_channels": ()}, r"channels=\(\)"),
        ({"integration": "fc", "integration_channels": (4,)}, r"integration_channels=\(4,\)"),
        ({"integration": "mlp", "integration_channels": ()}, r"channels=\(\)"),
        ({"variant": "released", "extraction": "conv3d"}, "extraction='conv3d', integration='conv', output='r\\+v'"),
        ({"variant": "released", "integration": "fc"}, "extraction='conv', integration='fc'"),
        ({"variant": "released", "output": "r"}, ".*output='r'"),
        ({"similarity": "embedded_gaussian", "implementation": "native"}, "implementation='native'"),
    ],
)
def test_what_does_not_go_together_is_refused(options, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        SELFYBlock(**options)
