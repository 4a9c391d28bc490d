"""The spatio-temporal convolution block: its size and reach beside SELFY-s, resolutions, outputs, learning."""

import numpy as np
import pytest
import tensorflow as tf

from keras_stss.blocks import SELFYBlock, STCBlock


def sample(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def parameters(block):
    block.build((None, None, None, None, 128))
    return sum(int(np.prod(weight.shape)) for weight in block.trainable_weights)


def test_as_large_as_selfy_s():
    """The paper compares blocks of about the same number of parameters."""
    block, rival = parameters(STCBlock()), parameters(SELFYBlock(integration="fc"))
    assert block == 9 * 128 * 48 + (27 + 27 + 9 + 9) * 48**2 + 48 * 128 + 2 * (5 * 48 + 128) == 228_064
    assert rival == 235_916
    assert abs(block / rival - 1) < 0.05


def test_sees_as_far_as_selfy_s():
    """Five frames and 9×9 positions of the map that it works on."""
    block = STCBlock(channels=4, strides=1)
    inputs = np.abs(sample((1, 9, 15, 15, 3)))
    block(inputs)
    for weight in block.trainable_weights:
        weight.assign(np.abs(weight.numpy()) + 0.1)  # no ReLU hides what arrives
    features = tf.constant(block.reduce(inputs))
    with tf.GradientTape() as tape:
        tape.watch(features)
        outputs = features
        for conv in block.convs:
            outputs = conv(outputs)
        middle = tf.reduce_sum(outputs[:, 4, 7, 7])
    seen = np.abs(tape.gradient(middle, features).numpy()).max(axis=(0, 4)) > 0
    expected = np.zeros((9, 15, 15), bool)
    expected[2:7, 3:12, 3:12] = True
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("strides", [0.5, 1, 2, 4])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1)])
def test_adds_what_it_gives_alone(strides, size):
    inputs = sample((2, 3, *size, 5))
    both, alone = (STCBlock(4, strides=strides, output=output) for output in ("r+v", "r"))
    both(inputs), alone(inputs)
    alone.set_weights(both.get_weights())
    motion = alone(inputs).numpy()
    assert motion.shape == inputs.shape and motion.min() >= 0.0
    np.testing.assert_array_equal(both(inputs), motion + inputs)


def test_learns():
    block, inputs = STCBlock(4, kernels=[[3, 1, 1], [1, 3, 5]]), sample((2, 3, 8, 7, 5))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(block(inputs, training=True) * sample(inputs.shape, 1))
    weights = block.trainable_weights
    assert len(weights) == 12
    for weight, gradient in zip(weights, tape.gradient(loss, [weight.value for weight in weights])):
        assert np.abs(gradient).max() > 1e-6, weight.path


@pytest.mark.parametrize(
    ("options", "received"),
    [
        ({"kernels": ()}, r"kernels=\(\)"),
        ({"kernels": ((3, 3),)}, r"kernels=\(\(3, 3\),\)"),
        ({"kernels": ((3, 2, 3),)}, r"kernels=\(\(3, 2, 3\),\)"),
        ({"strides": 3}, "strides=3"),
        ({"output": "v"}, "output='v'"),
    ],
)
def test_refuses(options, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        STCBlock(**options)
