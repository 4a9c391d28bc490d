"""MobileNet-V2 over clips, and its depthwise convolution. The outputs are checked in test_pretrained_backbones.py."""

import keras
import numpy as np
import pytest

from keras_stss.layers import DepthwiseConvBN, TemporalShift
from keras_stss.models.mobilenet_v2 import STAGES, mobilenet_v2


def network(shape=(None, None, None, 3), **options):
    frames = keras.Input(shape)
    return keras.Model(frames, mobilenet_v2(frames, **options))


def small(**options):
    return network(width_multiplier=0.25, **options)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def randomized(model):
    """Biases and statistics away from zero, so that nothing is trivial."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif weight.name in ("beta", "moving_mean"):
            weight.assign(rng.normal(size=weight.shape) * 0.2)
    return model


def test_stages():
    """Sizes of MotionSqueeze's Table 10, and the known number of parameters without the head."""
    model = network((8, 224, 224, 3))
    sizes = {stage: tuple(tensor.shape) for stage, tensor in model.output.items()}
    assert sizes == {
        "stage1": (None, 8, 112, 112, 32),
        "stage2": (None, 8, 56, 56, 24),
        "stage3": (None, 8, 28, 28, 32),
        "stage4": (None, 8, 14, 14, 96),
        "stage5": (None, 8, 7, 7, 1280),
    }
    assert tuple(sizes) == STAGES
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == 2_223_872


@pytest.mark.parametrize(("multiplier", "channels"), [(0.25, (8, 8, 8, 24, 1280)), (1.4, (48, 32, 48, 136, 1792))])
def test_width(multiplier, channels):
    """Channels as in the tables of torchvision and timm; the last convolution is never narrower than 1280."""
    outputs = network((1, 32, 32, 3), width_multiplier=multiplier).output
    assert tuple(tensor.shape[-1] for tensor in outputs.values()) == channels


def test_frames_apart():
    """Without a shift each frame's features are those of the frame alone, whatever the sizes."""
    model, clip = randomized(small()), noise(2, 3, 50, 35, 3)
    whole, alone = model(clip), model(clip[1:, 2:])
    for stage in STAGES:
        np.testing.assert_allclose(whole[stage][1:, 2:], alone[stage], atol=1e-4)
    assert whole["stage5"].shape == (2, 3, 2, 2, 1280)


def test_shifts():
    """A shift before each expansion of a block with a shortcut; a frame sees as far as there are shifts."""
    model = randomized(small(shift_divisor=4))
    shifts = [layer.name for layer in model.layers if isinstance(layer, TemporalShift)]
    blocks = ("2_2", "3_1", "3_2", "4_1", "4_2", "4_3", "4_5", "4_6", "5_1", "5_2")
    assert shifts == [f"stage{block}_shift" for block in blocks]
    assert {layer.divisor for layer in model.layers if isinstance(layer, TemporalShift)} == {4}
    clip = noise(1, 7, 32, 32, 3)
    changed = clip.copy()
    changed[:, 3] += 1
    before, after = model(clip), model(changed)
    for stage, reach in (("stage1", 0), ("stage2", 1), ("stage3", 3)):
        differ = np.abs(before[stage] - after[stage]).max((0, 2, 3, 4)) > 0
        assert differ.tolist() == [abs(frame - 3) <= reach for frame in range(7)], stage


def test_insert():
    """What is inserted after a stage is what the next stage sees."""
    zero = keras.layers.Rescaling(0.0, name="zero")
    model = small(insert={"stage3": [zero]})
    outputs = model(noise(1, 2, 32, 32, 3))
    assert np.abs(outputs["stage2"]).max() > 0
    assert np.abs(outputs["stage3"]).max() == np.abs(outputs["stage4"]).max() == 0
    with pytest.raises(ValueError, match=r"stages among .*stage1.*Received: insert=\['res3'\]"):
        small(insert={"res3": []})


def test_multiplier_must_be_positive():
    with pytest.raises(ValueError, match="width_multiplier must be positive"):
        network(width_multiplier=0)


def test_gradients():
    """Every weight gets one."""
    keras.utils.set_random_seed(0)  # by bad luck a channel lies beyond the bounds of ReLU6 at all positions
    model = randomized(small(shift_divisor=8))
    pooled = keras.layers.Dense(2)(keras.ops.mean(model.output["stage5"], axis=(1, 2, 3)))
    head = keras.Model(model.input, pooled)
    head.compile(keras.optimizers.SGD(1.0), "mse", run_eagerly=True)
    before = [weight.numpy() for weight in head.trainable_weights]
    head.train_on_batch(noise(2, 2, 64, 64, 3), noise(2, 2))
    for weight, old in zip(head.trainable_weights, before):
        assert np.abs(weight.numpy() - old).max() > 0, weight.path


# The depthwise convolution.


@pytest.mark.parametrize("strides", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, (3, 5), 1])
def test_depthwise(strides, kernel):
    """Against sums in plain NumPy: a kernel for each channel, zeros alike on both sides, then statistics and ReLU6."""
    inputs = noise(2, 3, 8, 7, 2)
    layer = DepthwiseConvBN(kernel, strides)
    layer.build(inputs.shape)
    layer = randomized(layer)
    weights = {weight.path.split("/", 1)[1]: weight.numpy() for weight in layer.weights}
    taps = weights["depthwise/kernel"]  # (h, w, C, 1)
    rows, columns = taps.shape[:2]
    padded = np.pad(inputs, ((0, 0), (0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)))
    out = np.zeros((2, 3, -(-8 // strides), -(-7 // strides), 2))
    for y, x in np.ndindex(out.shape[2:4]):
        patch = padded[:, :, y * strides : y * strides + rows, x * strides : x * strides + columns]
        out[:, :, y, x] = (patch * taps[..., 0]).sum((2, 3))
    out = (out - weights["bn/moving_mean"]) / np.sqrt(weights["bn/moving_variance"] + 1e-5)
    out = np.clip(out * weights["bn/gamma"] + weights["bn/beta"], 0, 6)
    assert layer.compute_output_shape(inputs.shape) == out.shape
    np.testing.assert_allclose(layer(inputs), out, atol=1e-5)


@pytest.mark.parametrize(("options", "says"), [({"strides": 0}, "strides must"), ({"kernel_size": 2}, "odd kernel")])
def test_depthwise_refuses(options, says):
    with pytest.raises(ValueError, match=f"{says}.*Received"):
        DepthwiseConvBN(**options)
