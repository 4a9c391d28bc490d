"""Feature extraction against plain float64 NumPy: displacement, fully connected layers, convolutions over (l, u, v)."""

import numpy as np
import pytest
import tensorflow as tf
from seeded import randomize, sample

from keras_stss.layers import ConvExtractor, KernelSoftArgmaxExtractor, MLPExtractor, SoftArgmaxExtractor
from keras_stss.layers.extract import window_strides
from keras_stss.ops import displacement, kernel_soft_argmax, stss
from keras_stss.ops.dispatch import why_not_native
from keras_stss.ops.soft_argmax import soft_argmax

WITHOUT = why_not_native("map_conv")
FORMS = [
    pytest.param("native", marks=pytest.mark.skipif(WITHOUT is not None, reason=str(WITHOUT))),
    "reference",
]
SIDES = [(5, 5), (9, 9), (13, 13), (17, 17), (7, 5), (5, 17), (1, 9), (3, 1), (1, 1), (15, 3)]


def wide(*weights):
    return [weight.numpy().astype("float64") for weight in weights]


def normalized(values, bn):
    gamma, beta, mean, variance = wide(bn.gamma, bn.beta, bn.moving_mean, bn.moving_variance)
    return np.maximum((values - mean) / np.sqrt(variance + 1e-5) * gamma + beta, 0.0)


# -- displacement ---------------------------------------------------------------------------------------------------


def mean_place_by_hand(scores, temperature):
    """(U, V) → horizontal and vertical mean place over the largest."""
    weights = np.exp((scores - scores.max()) / temperature)
    weights /= weights.sum()
    rows, columns = (np.arange(side) - side // 2 for side in scores.shape)
    x, y = (weights * columns).sum(), (weights * rows[:, None]).sum()
    return x / max(scores.shape[1] // 2, 1), y / max(scores.shape[0] // 2, 1)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("temperature", [0.01, 0.7])
def test_soft_argmax_by_hand(sides, temperature):
    """Eq. 2, negative similarities included: nothing is rectified."""
    volume = 0.1 * sample((1, 2, 2, 3, 2, *sides))
    expected = np.zeros((*volume.shape[:5], 2))
    for place in np.ndindex(*volume.shape[:5]):
        expected[place] = mean_place_by_hand(volume[place].astype("float64"), temperature)
    assert (volume < 0).any()
    np.testing.assert_allclose(SoftArgmaxExtractor(temperature)(volume), expected, atol=1e-5)


@pytest.mark.parametrize("extractor", [SoftArgmaxExtractor(), KernelSoftArgmaxExtractor()], ids=["plain", "kernel"])
@pytest.mark.parametrize("sides", [(3, 5), (9, 9), (7, 1)])
def test_one_hot_volumes(extractor, sides):
    """A single one at (u, v) is a displacement of v to the right and u downwards, over the largest."""
    for u, v in np.ndindex(*sides):
        volume = np.zeros((1, 1, 1, 1, 2, *sides), "float32")
        volume[..., 1, u, v] = 1.0
        found = extractor(volume).numpy()[0, 0, 0, 0]
        x = (v - sides[1] // 2) / max(sides[1] // 2, 1)
        y = (u - sides[0] // 2) / max(sides[0] // 2, 1)
        np.testing.assert_allclose(found[1, :2], (x, y), atol=1e-5)
        # A volume of nothing, as there is for frames outside the clip, stays at rest.
        np.testing.assert_allclose(found[0], 0.0, atol=1e-6)
        if found.shape[-1] == 3:
            assert found[1, 2] == 1.0


@pytest.mark.parametrize(("offsets", "window", "sigma"), [((1,), (9, 9), 5.0), ((-2, 0, 1), (3, 7), None)])
def test_kernel_soft_argmax_is_the_displacement_of_features(offsets, window, sigma):
    """From the volume what the displacement operation gives from the features."""
    features = sample((2, 3, 6, 5, 8))
    volume = stss(features, offsets, window)
    found = KernelSoftArgmaxExtractor(sigma, 0.05)(volume)
    assert found.shape == (2, 3, 6, 5, len(offsets), 3)
    np.testing.assert_array_equal(found, kernel_soft_argmax(volume, sigma, 0.05))
    expected = displacement(features, offsets, window, "cosine", sigma, 0.05, "reference")
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_soft_argmax_sees_the_other_way_when_flipped():
    """Turning the window round turns the displacement round; turning axes swaps the channels."""
    volume = sample((1, 1, 2, 2, 2, 5, 7))
    found = soft_argmax(volume, 0.3).numpy()
    np.testing.assert_allclose(soft_argmax(volume[..., ::-1, ::-1], 0.3), -found, atol=1e-6)
    np.testing.assert_allclose(soft_argmax(volume.swapaxes(-1, -2), 0.3), found[..., ::-1], atol=1e-6)


@pytest.mark.parametrize("extractor", [SoftArgmaxExtractor, KernelSoftArgmaxExtractor])
@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_rounds_the_result_alone(extractor, precision):
    dtype = precision.removeprefix("mixed_")
    volume = tf.cast(sample((1, 2, 2, 2, 2, 9, 9)), dtype)
    found = extractor(dtype=precision)(volume)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, tf.cast(extractor()(tf.cast(volume, "float32")), dtype))


# -- fully connected layers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(5, 5), (3, 7), (1, 1)])
def test_mlp_by_hand(sides):
    volume = sample((1, 2, 2, 3, 2, *sides))
    layer = MLPExtractor((4, 6, 5))
    layer.build(volume.shape)
    randomize(layer, 1, None)
    expected = volume.astype("float64").reshape(*volume.shape[:5], -1)
    for dense in layer.dense:
        expected = normalized(expected @ wide(dense.conv.kernel)[0][0, 0], dense.bn)
    assert expected.any()
    np.testing.assert_allclose(layer(volume), expected, rtol=1e-4, atol=1e-5)


# -- convolutions ---------------------------------------------------------------------------------------------------


def conv_by_hand(maps, kernel, strides, padding):
    """(N, L, U, V, C) with a kernel (kl, ku, kv, C, F): zeros on both sides alike, l at every place."""
    reach = kernel.shape[0] // 2
    padded = np.pad(maps, ((0, 0), (reach, reach), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    height, width = ((padded.shape[2 + a] - kernel.shape[1 + a]) // strides[a] + 1 for a in (0, 1))
    outputs = np.zeros((*maps.shape[:2], height, width, kernel.shape[-1]))
    for offset, u, v in np.ndindex(maps.shape[1], height, width):
        top, left = u * strides[0], v * strides[1]
        patch = padded[:, offset : offset + kernel.shape[0], top : top + kernel.shape[1], left : left + kernel.shape[2]]
        outputs[:, offset, u, v] = np.tensordot(patch, kernel, 4)
    return outputs


def extract_by_hand(layer, volume):
    """The layers' own kernels, in the paper's form of one channel axis: (l, u, v, C, F)."""
    maps = volume.astype("float64").reshape(-1, *volume.shape[4:], 1)
    for number, conv in enumerate(layer.convs):
        kernel = wide(conv.kernel)[0]
        ku, kv, channels, filters = kernel.shape
        assert channels == layer.depth * maps.shape[-1]
        kernel = kernel.reshape(ku, kv, layer.depth, -1, filters).transpose(2, 0, 1, 3, 4)
        last = number == len(layer.convs) - 1
        maps = normalized(conv_by_hand(maps, kernel, conv.strides, (0, 0) if last else (1, 1)), conv.bn)
    assert maps.shape[2:4] == (1, 1)
    return maps.reshape(*volume.shape[:5], -1)


def built(depth, form, shape, channels):
    layer = ConvExtractor(channels, form, depth)
    layer.build(shape)
    randomize(layer, 1, None)
    return layer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("sides", SIDES)
def test_convolutions_by_hand(sides, depth, form):
    """Every window from 1 to 17, odd as it may be, comes down to one position by the kernels that are documented."""
    volume = sample((1, 1, 2, 2, 3, *sides))
    layer = built(depth, form, volume.shape, (2, 3, 4, 5))
    expected = extract_by_hand(layer, volume)
    assert expected.any()
    np.testing.assert_allclose(layer(volume), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("side", "layers", "strides", "last"),
    [
        (9, 4, [1, 2, 2, 1], 3),
        (5, 4, [1, 1, 2, 1], 3),
        (13, 4, [1, 2, 2, 1], 4),
        (17, 4, [1, 2, 2, 1], 5),
        (7, 4, [1, 1, 2, 1], 4),
        (3, 4, [1, 1, 1, 1], 3),
        (1, 4, [1, 1, 1, 1], 1),
        (17, 6, [1, 1, 2, 2, 2, 1], 3),
        (9, 3, [1, 2, 1], 5),
        (9, 2, [1, 1], 9),
        (9, 1, [1], 9),
    ],
)
def test_windows_are_halved_late_and_not_below_three(side, layers, strides, last):
    """The paper's 9×9 has 3×3 kernels throughout; each axis of an oblong window goes its own way."""
    assert window_strides(side, layers) == strides
    extractor = ConvExtractor((2,) * layers)
    extractor.build((None, None, None, None, None, side, 9))
    assert [conv.strides[0] for conv in extractor.convs] == strides
    assert extractor.convs[-1].kernel.shape[0] == last
    assert [conv.strides[1] for conv in extractor.convs] == window_strides(9, layers)


def test_parameters_are_those_of_the_kernels():
    """A 3×3×3 kernel has three times the weights of a 1×3×3 one."""
    kernels = [
        [conv.kernel.shape for conv in built(depth, "auto", (1,) * 5 + (9, 9), (4, 16)).convs] for depth in (1, 3)
    ]
    for flat, deep in zip(*kernels):
        assert np.prod(deep) == 3 * np.prod(flat)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.skipif(WITHOUT is not None, reason=str(WITHOUT))
def test_deep_kernels_are_the_same_in_both_forms(training):
    """Outputs, all gradients and moving statistics of 3×3×3 kernels, native and in plain operations."""
    volume, results = tf.constant(sample((1, 2, 2, 3, 4, 5, 7))), []
    for form in ("native", "reference"):
        layer = built(3, form, volume.shape, (3, 4, 5))
        with tf.GradientTape() as tape:
            tape.watch(volume)
            outputs = layer(volume, training=training)
            loss = tf.reduce_sum(outputs * sample(outputs.shape, 1))
        gradients = tape.gradient(loss, [volume, *(weight.value for weight in layer.trainable_weights)])
        results.append([outputs, *gradients, *(weight.value for weight in layer.non_trainable_weights)])
    for found, expected in zip(*results):
        np.testing.assert_allclose(found, expected, atol=2e-4 * max(np.abs(expected).max(), 1e-3))


def test_deep_kernels_look_at_neighbouring_offsets():
    """Two layers of depth 3 reach two offsets to either side and no further, and no other position."""
    shape = (1, 2, 2, 2, 7, 5, 5)
    layer, inputs = built(3, "reference", shape, (3, 6)), sample(shape)
    changed = inputs.copy()
    changed[0, 1, 0, 1, 3] += 1.0
    moved = np.any(layer(inputs).numpy() != layer(changed).numpy(), axis=-1)
    assert list(np.flatnonzero(moved[0, 1, 0, 1])) == [1, 2, 3, 4, 5]
    assert moved.sum() == 5


@pytest.mark.parametrize("form", FORMS)
def test_deep_kernels_of_unknown_sizes(form):
    """One traced function serves any number of offsets."""
    layer = built(3, form, (None, None, None, None, None, 5, 5), (3, 4))
    run = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, None, None, 5, 5))])
    for shape in [(1, 2, 3, 1, 2, 5, 5), (2, 1, 1, 2, 5, 5, 5)]:
        np.testing.assert_allclose(run(sample(shape)), extract_by_hand(layer, sample(shape)), rtol=1e-4, atol=1e-5)
