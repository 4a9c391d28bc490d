"""STM: its equations against plain loops, the degenerate forms, what it shares with a ResNet, and its networks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_stss.blocks import STMBlock
from keras_stss.layers import ChannelwiseMotion, MotionDifference, TemporalConv
from keras_stss.models import build_model, transfer_weights
from keras_stss.models.resnet import RESNETS, resnet
from keras_stss.models.stages import Stages

SIZES = pytest.mark.parametrize("shape", [(2, 4, 3, 5, 3), (1, 2, 6, 4, 3), (2, 1, 3, 2, 3), (1, 3, 1, 1, 1)])
FORMS = pytest.mark.parametrize("kernel", ["channelwise", "ordinary"])


def sample(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomize(layer, seed=0):
    """Values away from every initializer's."""
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        else:
            weight.assign(rng.normal(size=weight.shape) / np.sqrt(max(np.prod(weight.shape[:-1]), 4)))


def built(layer, shape):
    layer.build(shape)
    randomize(layer)
    return layer


def count(layer):
    return sum(int(np.prod(weight.shape)) for weight in layer.trainable_weights)


def mixed(vector, kernel):
    """One place of a kernel, (C, 1) or (C, C), on one vector of channels."""
    return vector * kernel[:, 0] if kernel.shape[1] != len(vector) or len(vector) == 1 else vector @ kernel


def temporal_by_hand(frames, kernel):
    """Eq. 1, a term at a time."""
    outputs = np.zeros(frames.shape)
    for b, t, y, x in np.ndindex(frames.shape[:4]):
        for i in (-1, 0, 1):
            if 0 <= t + i < frames.shape[1]:
                outputs[b, t, y, x] += mixed(frames[b, t + i, y, x], kernel[i + 1, 0])
    return outputs


def difference_by_hand(frames, kernel, strides):
    """Eq. 2, a term at a time, at every strides-th place."""
    batch, time, height, width, channels = frames.shape
    outputs = np.zeros((batch, time, -(-height // strides), -(-width // strides), channels))
    for b, t, row, column in np.ndindex(outputs.shape[:4]):
        if t == time - 1:
            continue
        y, x = row * strides, column * strides
        outputs[b, t, row, column] = frames[b, t, y, x]
        for i, j in np.ndindex(3, 3):
            if 0 <= y + i - 1 < height and 0 <= x + j - 1 < width:
                outputs[b, t, row, column] -= mixed(frames[b, t + 1, y + i - 1, x + j - 1], kernel[i, j])
    return outputs


@SIZES
@FORMS
def test_convolution_over_time(shape, kernel):
    frames, layer = sample(shape), built(TemporalConv(kernel), shape)
    expected = temporal_by_hand(frames, layer.values.numpy())
    np.testing.assert_allclose(layer(frames), expected, atol=1e-6)


@SIZES
@FORMS
@pytest.mark.parametrize("strides", [1, 2, 3])
def test_difference(shape, kernel, strides):
    frames, layer = sample(shape), built(MotionDifference(kernel, strides), shape)
    found = layer(frames).numpy()
    np.testing.assert_allclose(found, difference_by_hand(frames, layer.values.numpy(), strides), atol=1e-6)
    assert not found[:, -1].any()


def test_frequency_is_a_sum_and_a_difference():
    """Section 3.3: F(t) + F(t+1), with nothing after the last frame, and F(t) - F(t+1)."""
    clip = np.array([1.0, 4.0, -2.0], "float32").reshape(1, 3, 1, 1, 1)
    np.testing.assert_array_equal(np.ravel(TemporalConv("frequency")(clip)), [5.0, 2.0, -2.0])
    np.testing.assert_array_equal(np.ravel(MotionDifference("frequency")(clip)), [-3.0, 6.0, 0.0])


@pytest.mark.parametrize("strides", [1, 2])
def test_frequency_is_learned_with_set_kernels(strides):
    """Section 5.3: [0, 1, 1] over time, and 1 in the centre alone over space."""
    frames = sample((2, 4, 5, 6, 3))
    over_time, over_space = TemporalConv(), MotionDifference(strides=strides)
    for layer in (over_time, over_space):
        layer.build(frames.shape)
    over_time.values.assign(np.array([0.0, 1.0, 1.0])[:, None, None, None] * np.ones((1, 1, 3, 1)))
    centre = np.zeros((3, 3, 3, 1))
    centre[1, 1] = 1.0
    over_space.values.assign(centre)
    np.testing.assert_allclose(TemporalConv("frequency")(frames), over_time(frames), atol=1e-6)
    np.testing.assert_allclose(MotionDifference("frequency", strides)(frames), over_space(frames), atol=1e-6)
    assert TemporalConv("frequency").weights == MotionDifference("frequency").weights == []


@FORMS
def test_kernels_start_without_effect(kernel):
    """[0, 1, 0] over time, and the plain difference: channels apart in the ordinary form too."""
    frames = sample((2, 4, 5, 6, 3))
    np.testing.assert_array_equal(TemporalConv(kernel)(frames), frames)
    np.testing.assert_allclose(MotionDifference(kernel)(frames)[:, :-1], frames[:, :-1] - frames[:, 1:], atol=1e-6)


def test_motion_module_is_its_steps():
    """Reduce, compare, restore, normalise, without activation."""
    frames = sample((2, 3, 5, 4, 8))
    module = built(ChannelwiseMotion(reduction=4, strides=2), frames.shape)
    motion = difference_by_hand(frames @ module.reduce.kernel.numpy(), module.difference.values.numpy(), 2)
    kernel, gamma, beta, mean, variance = (weight.numpy() for weight in module.restore.weights)
    expected = (motion @ kernel[0, 0] - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    np.testing.assert_allclose(module(frames), expected, atol=1e-5)
    np.testing.assert_allclose(module.motion_features(frames)["motion"], motion, atol=1e-5)
    assert expected.min() < -0.1


@pytest.mark.parametrize(("channels", "reduction", "reduced"), [(48, 16, 3), (40, 16, 2), (8, 16, 1), (8, 1, 8)])
def test_reduction_leaves_a_channel(channels, reduction, reduced):
    module = ChannelwiseMotion(reduction)
    frames = sample((1, 2, 3, 3, channels))
    assert module(frames).shape == frames.shape
    assert module.motion_features(frames)["motion"].shape[-1] == reduced
    assert count(module) == 2 * channels * reduced + 9 * reduced + 2 * channels


@pytest.mark.parametrize("motion", ["channelwise", "ordinary"])
def test_a_still_clip_and_a_single_frame_have_no_motion(motion):
    frame = sample((2, 1, 5, 4, 8))
    module = ChannelwiseMotion(4, motion)
    for clip in (frame, np.repeat(frame, 3, axis=1)):
        assert np.abs(module(clip)).max() < 1e-6
    randomize(module)
    assert not np.any(module.motion_features(frame)["motion"])


def test_block_is_its_steps():
    inputs = sample((2, 3, 6, 5, 8))
    block = built(STMBlock(filters=3, strides=2, reduction=2), inputs.shape)
    parts = block.parts
    features = parts["conv1"](inputs)
    both = parts["conv2"](parts["temporal"](features)) + parts["cmm"](features)
    expected = tf.nn.relu(parts["conv3"](tf.nn.relu(both)) + parts["shortcut"](inputs))
    assert expected.shape == (2, 3, 3, 3, 12)
    np.testing.assert_allclose(block(inputs), expected, atol=1e-5)
    # Summands may be negative: neither is rectified by itself.
    assert np.min(parts["cmm"](features)) < 0 and np.min(parts["conv2"](features)) < 0


@pytest.mark.parametrize(
    ("options", "channels", "output"),
    [
        ({}, 8, (2, 3, 5, 6, 8)),
        ({}, 6, (2, 3, 5, 6, 6)),
        ({}, 2, (2, 3, 5, 6, 2)),
        ({"bottleneck": False}, 6, (2, 3, 5, 6, 6)),
        ({"filters": 3}, 12, (2, 3, 5, 6, 12)),
        ({"filters": 3, "strides": 2}, 4, (2, 3, 3, 3, 12)),
        ({"filters": 3, "strides": 2, "bottleneck": False, "fusion": "concat"}, 4, (2, 3, 3, 3, 3)),
    ],
)
def test_shapes(options, channels, output):
    """The defaults keep the shape; the shortcut has weights only where the shape changes."""
    block, inputs = STMBlock(**options), sample((2, 3, 5, 6, channels))
    assert block(inputs).shape == block.compute_output_shape(inputs.shape) == output
    assert ("shortcut" in block.parts) == (inputs.shape != output)


#: Options of the rows of Tables 6 to 10.
VARIANTS = {
    "stm": {},
    "cstm": {"modules": "cstm"},
    "cmm": {"modules": "cmm"},
    "concat": {"fusion": "concat"},
    "frequency": {"kernels": "frequency"},
    "ordinary-time": {"modules": "cstm", "temporal": "ordinary"},
    "channelwise-space": {"modules": "cstm", "spatial": "channelwise"},
    "ordinary-motion": {"modules": "cmm", "motion": "ordinary"},
}
EVERY_VARIANT = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())


@pytest.mark.parametrize("bottleneck", [True, False])
@EVERY_VARIANT
def test_every_weight_learns_from_the_first_step(options, bottleneck):
    block, inputs = STMBlock(reduction=2, bottleneck=bottleneck, **options), sample((2, 3, 6, 5, 16))
    block(inputs)
    with tf.GradientTape() as tape:
        outputs = block(inputs, training=True)
        loss = tf.reduce_sum(outputs * sample(outputs.shape, 1))
    for weight, gradient in zip(
        block.trainable_weights, tape.gradient(loss, [w.value for w in block.trainable_weights])
    ):
        assert np.isfinite(gradient).all(), weight.path
        assert np.abs(gradient).max() > 1e-6, weight.path


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
@EVERY_VARIANT
def test_half_precision(options, precision):
    inputs = sample((2, 3, 6, 5, 16))
    block = built(STMBlock(reduction=2, strides=2, **options), inputs.shape)
    half = STMBlock(reduction=2, strides=2, dtype=precision, **options)
    half.build(inputs.shape)
    half.set_weights(block.get_weights())
    expected, found = block(inputs), half(inputs)
    assert found.dtype == keras.DTypePolicy(precision).compute_dtype
    assert {weight.dtype for weight in half.weights} == {"float32"}
    tolerance = {"mixed_float16": 1e-2, "mixed_bfloat16": 1e-1}[precision]
    np.testing.assert_allclose(tf.cast(found, "float32"), expected, atol=tolerance * np.abs(expected).max())


@EVERY_VARIANT
def test_life_in_another_model(tmp_path, options):
    """Any B, T, H and W; a file and back."""
    inputs = keras.Input((None, None, None, 8))
    model = keras.Model(inputs, STMBlock(reduction=2, strides=2, **options)(inputs))
    randomize(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for shape in [(2, 3, 6, 5, 8), (1, 1, 3, 4, 8), (3, 5, 1, 2, 8)]:
        np.testing.assert_array_equal(loaded(sample(shape)), model(sample(shape)))


@pytest.mark.parametrize("forms", [{}, {"temporal": "ordinary", "motion": "ordinary", "spatial": "channelwise"}])
def test_compiled_step(forms):
    """XLA takes the block, gradients included."""
    inputs = keras.Input((None, None, None, 8))
    block = STMBlock(reduction=2, strides=2, **forms)
    model = keras.Model(inputs, block(inputs))
    randomize(model)
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=True)
    before = model.get_weights()
    assert np.isfinite(model.train_on_batch(sample((2, 3, 6, 5, 8)), sample((2, 3, 3, 3, 8), 1)))
    still = [weight.path for weight, old in zip(model.weights, before) if np.array_equal(weight, old)]
    assert still == []


def test_motion_features():
    """H of eq. 2 for arrays, and in a model that shares the block's weights."""
    frames, block = sample((2, 3, 6, 5, 16)), STMBlock(reduction=2, strides=2)
    inputs = keras.Input((None, None, None, 16))
    model = keras.Model(inputs, block(inputs))
    extractor = keras.Model(inputs, block.motion_features(inputs))
    randomize(model)
    found = extractor(frames)["motion"]
    assert found.shape == (2, 3, 3, 3, 2)
    assert np.abs(found[:, :-1]).max() > 0.1
    np.testing.assert_allclose(found, block.motion_features(frames)["motion"], atol=1e-6)
    assert STMBlock(modules="cstm").motion_features(frames) == {}


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (TemporalConv, {"kernel": "fixed"}, "Received: kernel='fixed'"),
        (MotionDifference, {"kernel": None}, "Received: kernel=None"),
        (MotionDifference, {"strides": 0}, "Received: strides=0"),
        (ChannelwiseMotion, {"reduction": 0.5}, "Received: reduction=0.5"),
        (ChannelwiseMotion, {"motion": "frequency"}, "Received: motion='frequency'"),
        (ChannelwiseMotion, {"kernels": "fixed"}, "Received: kernels='fixed'"),
        (STMBlock, {"filters": 0}, "Received: filters=0"),
        (STMBlock, {"strides": (2, 2)}, r"Received: strides=\(2, 2\)"),
        (STMBlock, {"modules": "stm"}, "Received: modules='stm'"),
        (STMBlock, {"fusion": "add"}, "Received: fusion='add'"),
        (STMBlock, {"spatial": "depthwise"}, "Received: spatial='depthwise'"),
        (STMBlock, {"kernels": "frequency", "temporal": "ordinary"}, "Received: temporal='ordinary'"),
    ],
)
def test_refuses(kind, options, says):
    with pytest.raises(ValueError, match=says):
        kind(**options)


@pytest.mark.parametrize("kind", [TemporalConv, MotionDifference, ChannelwiseMotion, STMBlock])
def test_refuses_shapes(kind):
    for shape in [(2, 3, 4, 5), (2, 3, 4, 5, None)]:
        with pytest.raises(ValueError, match="B, T, H, W, C"):
            kind().build(shape)


def network(name="resnet10", width=8, stm=None, **options):
    frames = keras.Input((None, None, None, 3))
    return keras.Model(frames, resnet(frames, name, width, stm=stm, **options)["res5"])


@pytest.mark.parametrize("name", ["resnet10", "resnet50"])
@pytest.mark.parametrize("modules", ["both", "cstm", "cmm"])
def test_starts_as_the_resnet(name, modules):
    """With CMM silent it is the plain network, whose weights it finds by their names."""
    plain, stm = network(name, 4), network(name, 4, {"modules": modules})
    randomize(plain)
    theirs = {weight.path: weight.numpy() for weight in plain.weights}
    assert set(theirs) < {weight.path for weight in stm.weights}
    for weight in stm.weights:
        if weight.path in theirs:
            weight.assign(theirs[weight.path])
        else:
            assert "_temporal/" in weight.path or "_cmm/" in weight.path
        if weight.path.endswith("_cmm/restore/bn/gamma"):
            np.testing.assert_allclose(weight, np.full(weight.shape, 0.1), rtol=1e-6)
            weight.assign(np.zeros(weight.shape))
    frames = sample((2, 3, 33, 40, 3))
    expected = plain(frames)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(stm(frames), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"modules": "cstm"}, {"modules": "cmm"}, {"kernels": "frequency"}])
def test_sees_the_order_of_frames(options):
    model, frames = network(stm=options), sample((1, 4, 32, 32, 3))
    randomize(model)
    order = [2, 0, 3, 1]
    assert np.abs(model(frames[:, order]).numpy() - model(frames).numpy()[:, order]).max() > 1e-2


def blocks_of(model, layer):
    return [each.name.removesuffix(f"_{layer}") for each in model.layers if each.name.endswith(f"_{layer}")]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({"stages": ["res2"], "per_stage": "first"}, ["res2_0"]),
        ({"per_stage": "first"}, ["res2_0", "res3_0", "res4_0", "res5_0"]),
        ({"stages": ("res5", "res3"), "per_stage": "all"}, ["res3_0", "res3_1", "res5_0", "res5_1"]),
    ],
)
def test_places(places, expected):
    """Table 9. Elsewhere the residual blocks stay, with the shift of TSM where that is chosen."""
    model = network("resnet18", 4, {"fusion": "concat", **places}, shift_divisor=4)
    everywhere = [f"res{stage}_{position}" for stage in (2, 3, 4, 5) for position in (0, 1)]
    for layer in ("temporal", "cmm", "fuse"):
        assert blocks_of(model, layer) == expected
    assert blocks_of(model, "shift") == [block for block in everywhere if block not in expected]


@pytest.mark.parametrize(
    ("stm", "says"),
    [
        ({"stages": ["res2", "pool1"]}, r"Received: stages of stm=\['pool1'\]"),
        ({"per_stage": 1}, "Received: per_stage=1"),
        ({"modules": "none"}, "Received: modules='none'"),
        ({"reduce": 8}, "reduce"),
    ],
)
def test_network_refuses(stm, says):
    with pytest.raises(ValueError, match=says):
        network(stm=stm)


def widths(depths=RESNETS["resnet50"][0], width=64):
    """Channels between the 1×1 convolutions, a block at a time."""
    return np.repeat(width * 2 ** np.arange(4), depths)


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({"modules": "cstm"}, lambda c, r: 3 * c),
        ({"modules": "cstm", "temporal": "ordinary"}, lambda c, r: 3 * c * c),
        ({"modules": "cstm", "spatial": "channelwise"}, lambda c, r: 3 * c + 9 * c - 9 * c * c),
        ({"modules": "cmm"}, lambda c, r: 2 * c * r + 9 * r + 2 * c),
        ({"modules": "cmm", "motion": "ordinary"}, lambda c, r: 2 * c * r + 9 * r * r + 2 * c),
        ({}, lambda c, r: 3 * c + 2 * c * r + 9 * r + 2 * c),
        ({"kernels": "frequency"}, lambda c, r: 2 * c * r + 2 * c),
        ({"fusion": "concat"}, lambda c, r: 3 * c + 2 * c * r + 9 * r + 2 * c + 2 * c * c + 2 * c),
    ],
)
def test_parameters_of_the_variants(options, added):
    """Tables 6, 7, 8 and 10, against the plain network of the same width."""
    inner = widths(width=16)
    plain, stm = network("resnet50", 16), network("resnet50", 16, options)
    assert count(stm) - count(plain) == added(inner, inner // 16).sum()


@pytest.mark.parametrize(
    ("options", "millions"),
    [
        ({}, 24.0),
        ({"modules": "cstm"}, 23.88),
        ({"modules": "cstm", "temporal": "ordinary"}, 27.64),
        ({"modules": "cstm", "spatial": "channelwise", "stages": ["res4", "res5"]}, 13.28),
    ],
)
def test_parameters_of_the_paper(options, millions):
    """Table 4 and Table 10 with 174 classes. The paper leaves open where its 3×3 convolutions are channel-wise."""
    digits = len(str(millions).split(".")[1])
    assert round((count(network("resnet50", 64, options)) + 2048 * 174 + 174) / 1e6, digits) == millions


def test_from_a_config(tmp_path):
    """The section names blocks and places; a plain network lends all its weights."""
    path = tmp_path / "small.yaml"
    path.write_text(
        "data: {format: clips, root: ., annotations: a.csv, frames: 4, resize: 40, crop: 32}\n"
        "model: {backbone: resnet10, width: 8, temporal: stm, stm: {stages: [res3, res5], reduction: 4}}\n",
        encoding="utf-8",
    )
    model = build_model(path, classes=3)
    assert model.name == "stm_resnet10"
    assert blocks_of(model, "temporal") == blocks_of(model, "cmm") == ["res3_0", "res5_0"]
    assert model.get_layer("res5_0_cmm").reduction == 4
    plain = build_model(path, classes=3, temporal="tsn", stm={})
    copied, kept = transfer_weights(plain, model)
    assert copied == len(plain.weights)
    assert kept and all("_temporal/" in path or "_cmm/" in path for path in kept)


def test_stages():
    """Layers in the order they are named, the result kept and handed on."""
    stages = Stages(("a", "b"), {"a": [lambda x: x + 1, lambda x: x * 10]})
    assert stages.finish("a", 2) == 30
    assert stages.finish("b", 5) == 5
    assert stages.outputs == {"a": 30, "b": 5}
    with pytest.raises(ValueError, match=r"stages among \('a', 'b'\)\. Received: insert=\['c'\]"):
        Stages(("a", "b"), {"a": [], "c": []})
