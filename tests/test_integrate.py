"""Feature integration and change of resolution against plain float64 NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from seeded import randomize, sample

from keras_stss.layers import ConvIntegrator, FCIntegrator, MLPIntegrator, ResizeFrames
from keras_stss.layers.resize import STRIDES, back, scale_and_strides


def pointwise_by_hand(values, layer):
    """1×1 convolution, normalisation and ReLU of a ConvBN on the last axis."""
    kernel, gamma, beta, mean, variance = (weight.numpy().astype("float64") for weight in layer.weights)
    return np.maximum((values @ kernel[0, 0] - mean) / np.sqrt(variance + 1e-5) * gamma + beta, 0.0)


@pytest.mark.parametrize("upsample", [1, 2, 4])
@pytest.mark.parametrize("channels", [None, (6, 7)])
def test_offsets_by_hand(channels, upsample):
    """FC: one product over all offsets; MLP: the same layers at every offset before it; each position on its own."""
    layer = FCIntegrator(5, upsample) if channels is None else MLPIntegrator(5, channels, upsample)
    features = sample((2, 2, 3, 2, 3, 4))
    layer.build(features.shape)
    randomize(layer, 1, None)
    values = features.astype("float64")
    for conv in getattr(layer, "convs", ()):
        values = pointwise_by_hand(values, conv)
    fused = pointwise_by_hand(values.reshape(2, 2, 3, 2, -1), layer.fuse)
    expected = fused.repeat(upsample, axis=2).repeat(upsample, axis=3)
    assert (expected > 0).any() and (expected == 0).any()
    np.testing.assert_allclose(layer(features), expected, rtol=1e-4, atol=1e-5)


def test_released_integrator_writes_every_fourth_position():
    """A 1×1 transposed convolution of stride 4: in between stands the normalisation's shift alone."""
    layer = ConvIntegrator(5, (6, 7), upsample=4, variant="released")
    features = sample((1, 2, 3, 2, 2, 4))
    layer.build(features.shape)
    randomize(layer, 1, None)
    outputs = layer(features).numpy()
    assert outputs.shape == (1, 2, 12, 8, 5)
    shift = (layer.bn.beta - layer.bn.moving_mean * layer.bn.gamma / np.sqrt(layer.bn.moving_variance + 1e-5)).numpy()
    written = np.abs(outputs - shift).max(axis=(0, 1, 4)) > 1e-5
    expected = np.zeros((12, 8), bool)
    expected[::4, ::4] = True
    np.testing.assert_array_equal(written, expected)


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)])
def test_frames_are_halved_to_means(size):
    """A last odd row or column is averaged with nothing but itself."""
    frames = sample((2, 3, *size, 4))
    expected = np.empty((2, 3, (size[0] + 1) // 2, (size[1] + 1) // 2, 4))
    for y, x in np.ndindex(*expected.shape[2:4]):
        expected[:, :, y, x] = frames[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((2, 3))
    np.testing.assert_allclose(ResizeFrames(0.5)(frames), expected, rtol=1e-5, atol=1e-6)


def test_halves_of_doubles_are_the_same():
    frames = sample((2, 3, 5, 4, 3))
    np.testing.assert_array_equal(ResizeFrames(2)(frames), frames.repeat(2, axis=2).repeat(2, axis=3))
    np.testing.assert_allclose(ResizeFrames(0.5)(ResizeFrames(2)(frames)), frames, rtol=1e-6)
    np.testing.assert_array_equal(ResizeFrames(1)(frames), frames)


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("size", [(7, 7), (8, 12), (5, 2), (1, 1)])
def test_the_way_there_and_back(strides, size):
    """Before, convolution and upsampling reach at least the input's size; the rest is cut off."""
    scale, step = scale_and_strides(strides)
    inputs = sample((1, 2, *size, 3))
    small = ResizeFrames(scale)(inputs)[:, :, ::step, ::step].numpy()
    if max(size) > 4:
        assert small.shape[2] == -(-size[0] // strides) and small.shape[3] == -(-size[1] // strides)
    upsample = max(int(strides), 1)
    large = tf.constant(small.repeat(upsample, axis=2).repeat(upsample, axis=3))
    assert back(large, strides, like=tf.constant(inputs)).shape == inputs.shape
