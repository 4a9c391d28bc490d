"""I3D and its layers. The outputs are checked in test_pretrained_backbones.py."""

import keras
import numpy as np
import pytest

from keras_stss.layers import Conv3DBN, NeighborMean
from keras_stss.models.i3d import STAGES, i3d


def network(shape=(None, None, None, 3), **options):
    frames = keras.Input(shape)
    return keras.Model(frames, i3d(frames, **options))


def small(**options):
    return network(width_multiplier=0.125, **options)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.mark.parametrize(
    ("kernel", "frames", "times"), [((7, 7, 7), 64, (32, 32, 16, 8)), ((1, 7, 7), 8, (8, 8, 4, 2))]
)
def test_stages(kernel, frames, times):
    """Sizes of the paper's Figure 3; with a first kernel of one frame time is strided in the pools alone."""
    model = network((frames, 224, 224, 3), stem_kernel=kernel)
    sizes = {stage: tuple(tensor.shape[1:]) for stage, tensor in model.output.items()}
    assert tuple(sizes) == STAGES
    first, third, fourth, fifth = times
    assert sizes["conv1"] == (first, 112, 112, 64)
    assert sizes["conv2"] == (first, 56, 56, 192)
    assert sizes["mixed_3b"] == (third, 28, 28, 256)
    assert sizes["mixed_3c"] == (third, 28, 28, 480)
    assert [sizes[f"mixed_4{letter}"] for letter in "bcdef"] == [
        (fourth, 14, 14, channels) for channels in (512, 512, 512, 528, 832)
    ]
    assert [sizes[f"mixed_5{letter}"] for letter in "bc"] == [(fifth, 7, 7, 832), (fifth, 7, 7, 1024)]
    # 12,697,264 with the head of 400 classes, as the PyTorch port counts them.
    stem = (343 - kernel[0] * 49) * 3 * 64
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == 12_287_264 - stem


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_any_size(padding):
    """The same network serves clips of every length and size."""
    model = small(stem_padding=padding)
    for frames, height, width in ((1, 32, 32), (5, 50, 33), (9, 40, 64)):
        outputs = model(noise(1, frames, height, width, 3))
        assert outputs["mixed_5c"].shape == (1, -(-frames // 8), -(-height // 32), -(-width // 32), 128)


def test_padding_of_the_stem():
    """The two paddings see even sizes one pixel apart: what the one sees, the other does in a picture moved by one."""
    inputs = noise(1, 16, 18, 20, 3)
    same = Conv3DBN(4, 7, 2)
    same.build(inputs.shape)
    symmetric = Conv3DBN(4, 7, 2, "symmetric")
    symmetric.build(inputs.shape)
    symmetric.set_weights(same.get_weights())
    moved = np.roll(inputs, -1, (1, 2, 3))
    inner = np.s_[:, 2:-3, 2:-3, 2:-3]
    np.testing.assert_allclose(symmetric(moved)[inner], same(inputs)[inner], atol=1e-5)
    assert np.abs(symmetric(inputs)[inner] - same(inputs)[inner]).max() > 0.1


@pytest.mark.parametrize(("padding", "before"), [("same", {7: 3, 8: 2}), ("symmetric", {7: 3, 8: 3})])
def test_where_the_kernel_stands(padding, before):
    """An input of a single one gives back the kernel: with 8 frames 'same' has two zeros before, 'symmetric' three."""
    for frames, zeros in before.items():
        layer = Conv3DBN(1, 7, 2, padding, None, epsilon=0.0)
        layer.build((1, frames, 1, 1, 1))
        kernel = np.zeros((7, 7, 7, 1, 1), "float32")
        kernel[:, 3, 3, 0, 0] = np.arange(1, 8)
        layer.conv.kernel.assign(kernel)
        spike = np.zeros((1, frames, 1, 1, 1), "float32")
        spike[0, 0] = 1
        out = layer(spike).numpy().ravel()
        # The first frame is under tap `zeros` of the first window, and two taps earlier in each next one.
        expected = [zeros + 1 - 2 * step if zeros >= 2 * step else 0 for step in range(len(out))]
        np.testing.assert_allclose(out, expected, atol=1e-6)
        assert layer.compute_output_shape((1, frames, 1, 1, 1))[1] == len(out) == 4


def test_insert():
    zero = keras.layers.Rescaling(0.0, name="zero")
    outputs = small(insert={"mixed_3c": [zero]})(noise(1, 4, 32, 32, 3))
    assert np.abs(outputs["mixed_3b"]).max() > 0
    assert np.abs(outputs["mixed_3c"]).max() == 0
    with pytest.raises(ValueError, match=r"stages among .*mixed_3b.*Received: insert=\['mixed_3a'\]"):
        small(insert={"mixed_3a": []})


@pytest.mark.parametrize("kernel", [(7, 7), (2, 7, 7), (0, 7, 7)])
def test_stem_that_cannot_be(kernel):
    with pytest.raises(ValueError, match="stem_kernel must be three odd numbers"):
        network(stem_kernel=kernel)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"padding": "valid"}, "'same' or 'symmetric'"), ({"kernel_size": 2, "padding": "symmetric"}, "odd kernel sizes")],
)
def test_convolution_refuses(options, says):
    with pytest.raises(ValueError, match=f"{says}.*Received"):
        Conv3DBN(**{"filters": 1, "kernel_size": 3, **options})


def test_gradients():
    """Every weight gets one."""
    keras.utils.set_random_seed(0)
    model = small(stem_kernel=(1, 7, 7))
    pooled = keras.layers.Dense(2)(keras.ops.mean(model.output["mixed_5c"], axis=(1, 2, 3)))
    head = keras.Model(model.input, pooled)
    head.compile(keras.optimizers.SGD(1.0), "mse", run_eagerly=True)
    before = [weight.numpy() for weight in head.trainable_weights]
    head.train_on_batch(noise(4, 4, 64, 64, 3), noise(4, 2))
    for weight, old in zip(head.trainable_weights, before):
        assert np.abs(weight.numpy() - old).max() > 0, weight.path


@pytest.mark.parametrize("frames", [1, 2, 3, 8])
def test_neighbor_mean(frames):
    """The mean over time of what comes out: ends at half weight, as an average pool of two frames gives it."""
    inputs = noise(2, frames, 3, 2, 4)
    layer = NeighborMean()
    out = layer(inputs)
    assert out.shape == layer.compute_output_shape(inputs.shape) == (2, max(frames - 1, 1), 3, 2, 4)
    weights = np.ones(frames)
    if frames > 1:
        weights[[0, -1]] = 0.5
    expected = np.average(inputs, axis=1, weights=weights)
    np.testing.assert_allclose(np.mean(out, axis=1), expected, atol=1e-6)
    symbolic = keras.Input((None, 3, 2, 4))
    np.testing.assert_allclose(keras.Model(symbolic, layer(symbolic)).predict(inputs, verbose=0), out, atol=1e-6)
