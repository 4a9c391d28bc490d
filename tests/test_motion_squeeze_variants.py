"""MotionSqueeze: the rows of the paper's tables 3, 5 and 7 and figure 4, and what the block lets see of the motion."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from seeded import randomize, sample

from keras_stss.blocks import MotionSqueezeBlock
from keras_stss.layers import ConvBN, SeparableConvBN
from keras_stss.layers.frame_pairs import FramePairs
from keras_stss.ops import kernel_soft_argmax, stss

SMALL = {"channels": 6, "window": (5, 3), "temperature": 0.05, "transform_channels": (4, 5)}
ROWS = {
    "S": {"sigma": None, "confidence": False},
    "KS": {"confidence": False},
    "KS+CM": {},
    "KS+CM+BD": {"backward": True},
    "KS+BD": {"confidence": False, "backward": True},
}


def make(channels, **arguments):
    block = MotionSqueezeBlock(**{**SMALL, **arguments})
    block.build((None, None, None, None, channels))
    return randomize(block)


def conv_bn(inputs, layer):
    """A 1×1 :class:`ConvBN` at inference."""
    gamma, beta, mean, variance = (weight.numpy() for weight in layer.bn.weights)
    return np.maximum((inputs @ layer.conv.kernel.numpy()[0, 0] - mean) / np.sqrt(variance + 1e-5) * gamma + beta, 0.0)


def displacement_tensor(clip, confidence, backward, sigma):
    """D of every frame from eq. 1 to 5: forward, of frame t against t + 1, then backward, of frame t + 1 against t."""
    last = clip.shape[1] - 1
    ways = []
    for offset in (1, -1)[: 1 + backward]:
        volume = stss(clip, (offset,), SMALL["window"], "cosine", "reference")
        numbers = kernel_soft_argmax(volume, sigma, SMALL["temperature"]).numpy()[:, :, :, :, 0]
        # The pair (t, t + 1); the last frame has none and takes the one before, a single frame what is there: zeros.
        first = [max(min(frame, last - 1), 0) for frame in range(last + 1)]
        found = numbers[:, first if offset == 1 else [min(frame + 1, last) for frame in first]]
        ways.append(found if confidence else found[..., :2])
    return np.concatenate(ways, axis=-1)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("time", [1, 2, 4])
def test_rows_of_table_3(row, time):
    """The 1 × (1, 1) transformation of table 7, by hand, on the displacement tensor of each row of table 3."""
    block = make(7, **ROWS[row], transform="conv", transform_kernels=(1,), transform_channels=())
    inputs = sample((2, time, 5, 6, 7))
    options = {"confidence": True, "backward": False, "sigma": 5.0, **ROWS[row]}
    moved = displacement_tensor(block.reduce(inputs), **options)
    assert moved.shape[-1] == {"S": 2, "KS": 2, "KS+CM": 3, "KS+CM+BD": 6, "KS+BD": 4}[row]
    np.testing.assert_allclose(block(inputs), inputs + conv_bn(moved, block.transform[0]), atol=1e-5)


@pytest.mark.parametrize("fusion", ["add", "multiply", "concat", "none"])
def test_rows_of_table_5(fusion):
    inputs = sample((2, 3, 5, 6, 7))
    motion = make(7, fusion="none")(inputs).numpy()
    block = make(7, fusion=fusion)
    expected = {
        "add": lambda: inputs + motion,
        "multiply": lambda: inputs * motion,
        "concat": lambda: conv_bn(np.concatenate([inputs, motion], axis=-1), block.fuse),
        "none": lambda: motion,
    }[fusion]()
    assert motion.min() >= 0.0
    assert motion.max() > 0.1
    np.testing.assert_allclose(block(inputs), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("transform", "kernels", "channels", "shapes"),
    [
        ("conv", (1,), (), [(1, 1, 3, 7)]),
        ("conv", (3,), (), [(3, 3, 3, 7)]),
        ("conv", (3, 3, 3, 3), (16, 32, 64), [(3, 3, 3, 16), (3, 3, 16, 32), (3, 3, 32, 64), (3, 3, 64, 7)]),
        ("separable", None, (16, 32, 64), [(7, 7, 3, 1), (3, 3, 16, 1), (3, 3, 32, 1), (3, 3, 64, 1)]),
        ("separable", [5, 1], [4], [(5, 5, 3, 1), (1, 1, 4, 1)]),
    ],
)
def test_rows_of_table_7(transform, kernels, channels, shapes):
    """Kinds, kernels, and the names that checkpoints are mapped to."""
    block = make(7, transform=transform, transform_kernels=kernels, transform_channels=channels)
    kind, spatial = {"conv": (ConvBN, "conv"), "separable": (SeparableConvBN, "depthwise")}[transform]
    assert [type(layer) for layer in block.transform] == [kind] * len(shapes)
    found = {weight.path.split("/", 1)[1]: tuple(weight.shape) for weight in block.weights}
    for number, shape in enumerate(shapes):
        assert found[f"transform{number}/{spatial}/kernel"] == shape
    assert block(sample((1, 3, 5, 6, 7))).shape == (1, 3, 5, 6, 7)


@pytest.mark.parametrize("side", [3, 9, 15, 21])
def test_window_sizes_of_figure_4(side):
    """A picture that moves as far as the window reaches is found; with the next smaller window it is not."""
    reach = side // 2
    picture = sample((1, 1, 26, 26, 16))
    clip = np.concatenate([picture, np.roll(picture, (reach, -reach), axis=(2, 3))], axis=1)
    for window, seen in ((side, True), (side - 2, False)):
        block = MotionSqueezeBlock(channels=None, window=(window, window))
        motion = block.motion_features(clip)
        inside = np.s_[0, 0, : 26 - reach, reach:, 0]
        np.testing.assert_allclose(
            motion["displacement"][inside], np.broadcast_to([-reach, reach], (26 - reach, 26 - reach, 2)), atol=0.05
        ) if seen else None
        assert np.all(motion["confidence"].numpy()[inside] > 0.999) == seen


def moving_clip(steps, size=(12, 13), channels=24):
    """A picture that goes round, by ``steps[t]`` = (down, right) from frame t to the next."""
    frames = [sample((1, 1, *size, channels))]
    for step in steps:
        frames.append(np.roll(frames[-1], step, axis=(2, 3)))
    return np.concatenate(frames, axis=1)


def test_motion_features_of_a_known_motion():
    """Forward the motion itself, backward its negative, in positions, horizontal first; the last frame repeats."""
    steps = [(2, -3), (0, 1), (-1, 0)]
    block = MotionSqueezeBlock(channels=None, window=(7, 9), backward=True)
    motion = {name: tensor.numpy() for name, tensor in block.motion_features(moving_clip(steps)).items()}
    shapes = {name: tensor.shape for name, tensor in motion.items()}
    expected = {"similarity": (7, 9), "displacement": (2,), "confidence": (1,)}
    assert shapes == {name: (1, 4, 12, 13, 2, *rest) for name, rest in expected.items()}
    middle = np.s_[0, :, 4:-4, 4:-4]
    for frame, (down, right) in enumerate([*steps, steps[-1]]):
        for way, sign in enumerate((1, -1)):
            found = motion["displacement"][middle][frame, :, :, way]
            np.testing.assert_allclose(found, np.broadcast_to([sign * right, sign * down], found.shape), atol=0.05)
            volume = motion["similarity"][middle][frame, :, :, way]
            np.testing.assert_allclose(volume[..., 3 + sign * down, 4 + sign * right], 1.0, atol=1e-5)
    np.testing.assert_allclose(motion["confidence"][middle], 1.0, atol=1e-5)


@pytest.mark.parametrize("backward", [False, True])
def test_motion_features_are_what_the_block_transforms(backward):
    """The displacement, divided by the largest again, gives the block's motion; confidence is the volume's maximum."""
    block = make(7, backward=backward, fusion="none", transform="conv", transform_kernels=(1,), transform_channels=())
    inputs = sample((2, 3, 5, 6, 7))
    motion = {name: tensor.numpy() for name, tensor in block.motion_features(inputs).items()}
    moved = np.concatenate([motion["displacement"] / [1, 2], motion["confidence"]], axis=-1)
    found = conv_bn(moved.reshape(2, 3, 5, 6, -1).astype("float32"), block.transform[0])
    np.testing.assert_allclose(block(inputs), found, atol=1e-5)
    largest = np.maximum(motion["similarity"].max(axis=(-2, -1)), 0.0)
    np.testing.assert_allclose(motion["confidence"][..., 0], largest, atol=1e-6)


def test_motion_features_of_one_frame_are_zero():
    motion = make(7, backward=True).motion_features(sample((2, 1, 5, 6, 7)))
    for name, tensor in motion.items():
        np.testing.assert_allclose(tensor, np.zeros(tensor.shape), atol=1e-6, err_msg=name)


@pytest.mark.parametrize("channels", [6, None])
def test_motion_features_in_a_functional_model(channels):
    """On Keras tensors of unknown sizes, sharing the weights of the block in the model."""
    inputs = keras.Input((None, None, None, 7))
    block = MotionSqueezeBlock(**{**SMALL, "channels": channels, "backward": True})
    outputs = block(inputs)
    looking = keras.Model(inputs, {"output": outputs, **block.motion_features(inputs)})
    randomize(block)
    for shape in [(2, 3, 5, 6, 7), (1, 1, 4, 4, 7)]:
        found = looking(sample(shape))
        np.testing.assert_array_equal(found.pop("output"), block(sample(shape)))
        for name, tensor in block.motion_features(sample(shape)).items():
            np.testing.assert_allclose(found[name], tensor, atol=1e-6, err_msg=name)
    assert looking.get_config()


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("ways", [1, 2])
def test_frame_pairs_by_hand(length, ways):
    numbers = sample((2, length, 3, 2, ways, 4))
    found = FramePairs()(numbers).numpy()
    for frame in range(length):
        first = min(frame, max(length - 2, 0))
        np.testing.assert_array_equal(found[:, frame, :, :, 0], numbers[:, first, :, :, 0])
        if ways == 2:
            second = min(first + 1, length - 1)
            np.testing.assert_array_equal(found[:, frame, :, :, 1], numbers[:, second, :, :, 1])


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("fusion", ["multiply", "concat", "none"])
def test_every_weight_of_a_variant_learns(row, fusion):
    inputs = sample((2, 4, 8, 8, 7))
    block = MotionSqueezeBlock(**{**SMALL, **ROWS[row], "fusion": fusion, "transform": "conv"})
    block(inputs)
    with tf.GradientTape() as tape:
        outputs = block(inputs, training=True)
        loss = tf.reduce_sum(outputs * sample(outputs.shape, seed=1))
    weights = block.trainable_weights
    for weight, gradient in zip(weights, tape.gradient(loss, [weight.value for weight in weights])):
        assert np.isfinite(gradient).all(), weight.path
        assert np.abs(gradient).max() > 1e-6, weight.path


def test_a_config_of_the_first_version_loads():
    """Files of before the variants do not name them."""
    config = MotionSqueezeBlock(transform_channels=(4,)).get_config()
    for key in ("confidence", "backward", "transform", "transform_kernels", "fusion"):
        del config[key]
    block = MotionSqueezeBlock.from_config(config)
    block.build((None, None, None, None, 8))
    assert block.weights[0].path.endswith("/reduce/conv/kernel")
    assert [tuple(layer.depthwise.kernel.shape) for layer in block.transform] == [(7, 7, 3, 1), (3, 3, 4, 1)]


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({"transform": "dense"}, "transform='dense'"),
        ({"fusion": "mean"}, "fusion='mean'"),
        ({"transform_kernels": (3, 3)}, r"transform_kernels=\(3, 3\)"),
        ({"transform_kernels": (3,), "transform_channels": (4,)}, r"transform_kernels=\(3,\)"),
    ],
)
def test_refuses(arguments, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        MotionSqueezeBlock(**arguments)
