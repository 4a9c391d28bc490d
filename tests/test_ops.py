"""The weightless functions against plain float64 NumPy, value and gradient apart."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_stss.ops import displacement, stss, temporal_shift

#: Largest error of an element by dtype, relative to the largest element of the expected array; for a gradient relative
#: to the largest term that goes into it (under cosine its parts along the vector cancel).
FORWARD = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
GRADIENT = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.2e-2}

#: (B, T, H, W, C), temporal offsets, (U, V).
TABLE = {
    "usual": ((2, 3, 5, 4, 6), (-2, -1, 0, 1, 2), (3, 3)),
    "odd sizes": ((1, 2, 7, 3, 3), (-1, 0, 1), (3, 5)),
    "one frame": ((2, 1, 4, 5, 4), (-1, 0, 1), (3, 3)),
    "flat window": ((1, 3, 3, 6, 4), (0, 1), (1, 5)),
    "upright window": ((1, 2, 6, 3, 4), (0, 1), (5, 1)),
    "one-pixel window": ((1, 3, 3, 2, 5), (-1, 1), (1, 1)),
    "window beyond the map": ((1, 2, 2, 3, 4), (0, 1), (9, 11)),
    "one position": ((2, 3, 1, 1, 4), (-1, 0, 1), (3, 3)),
    "self alone": ((1, 2, 4, 4, 3), (0,), (3, 3)),
    "next alone": ((1, 3, 4, 3, 3), (1,), (3, 3)),
    "earlier frames alone": ((1, 4, 3, 4, 3), (-1, -3), (3, 5)),
    "sixteen positions": ((1, 2, 4, 4, 3), (-1, 1), (3, 3)),
    "many channels": ((1, 2, 3, 3, 160), (-1, 0), (3, 3)),
    "uneven offsets": ((1, 5, 2, 3, 4), (-3, 2), (3, 3)),
    "offsets not in order": ((1, 4, 3, 2, 4), (2, -1, 0), (3, 3)),
    "offsets beyond the clip": ((1, 2, 3, 3, 4), (-5, 1, 2, 7), (3, 3)),
    "one channel": ((2, 2, 3, 4, 1), (-1, 0, 1), (3, 3)),
}
CASES = pytest.mark.parametrize(("shape", "offsets", "window"), TABLE.values(), ids=TABLE.keys())
SIMILARITY = pytest.mark.parametrize("similarity", ["cosine", "dot"])
DTYPE = pytest.mark.parametrize("dtype", FORWARD)


def pairs(shape, offsets, window):
    """All (index of the output, index of one position, index of the other) where both lie inside the clip."""
    batch, time, height, width, _ = shape
    rows, columns = window
    sides = (batch, time, height, width, len(offsets), rows, columns)
    for b, t, y, x, number, u, v in itertools.product(*map(range, sides)):
        other = (b, t + offsets[number], y + u - rows // 2, x + v - columns // 2)
        if all(0 <= place < size for place, size in zip(other[1:], (time, height, width))):
            yield (b, t, y, x, number, u, v), (b, t, y, x), other


def unit(features):
    root = np.sqrt(np.sum(features**2, axis=-1, keepdims=True) + 1e-6)
    return features / root, root


def stss_by_hand(features, offsets, window, similarity):
    vectors = unit(features)[0] if similarity == "cosine" else features
    volume = np.zeros((*features.shape[:-1], len(offsets), *window))
    for place, one, other in pairs(features.shape, offsets, window):
        volume[place] = vectors[one] @ vectors[other]
    return volume


def stss_gradient_by_hand(features, upstream, offsets, window, similarity):
    vectors, root = unit(features) if similarity == "cosine" else (features, None)
    gradient = np.zeros_like(vectors)
    for place, one, other in pairs(features.shape, offsets, window):
        gradient[one] += upstream[place] * vectors[other]
        gradient[other] += upstream[place] * vectors[one]
    if similarity == "cosine":
        largest = np.abs(gradient / root).max()
        gradient = (gradient - vectors * np.sum(vectors * gradient, axis=-1, keepdims=True)) / root
        return gradient, largest
    return gradient, np.abs(gradient).max()


def sample(shape, dtype="float64", seed=0):
    """Random numbers that the dtype holds exactly, as float64."""
    values = tf.cast(np.random.default_rng(seed).normal(size=shape), dtype)
    return tf.cast(values, "float64").numpy()


def error(found, expected, largest=None):
    found = tf.cast(found, "float64").numpy()
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / max(largest or np.abs(expected).max(), 1.0)


def gradient_of(function, inputs, upstream):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = function(inputs)
    return tape.gradient(outputs, inputs, output_gradients=tf.cast(upstream, outputs.dtype))


def reference(features, offsets, window, similarity="cosine"):
    return stss(features, offsets, window, similarity, "reference")


@CASES
@SIMILARITY
@DTYPE
def test_stss_forward(shape, offsets, window, similarity, dtype):
    features = sample(shape, dtype)
    found = reference(tf.cast(features, dtype), offsets, window, similarity)
    assert found.dtype == dtype
    assert error(found, stss_by_hand(features, offsets, window, similarity)) < FORWARD[dtype]


@CASES
@SIMILARITY
@DTYPE
def test_stss_gradient(shape, offsets, window, similarity, dtype):
    features = sample(shape, dtype)
    upstream = sample((*shape[:-1], len(offsets), *window), dtype, seed=1)
    found = gradient_of(lambda x: reference(x, offsets, window, similarity), tf.cast(features, dtype), upstream)
    assert found.dtype == dtype
    expected = stss_gradient_by_hand(features, upstream, offsets, window, similarity)
    assert error(found, *expected) < GRADIENT[dtype]


@SIMILARITY
def test_gradient_by_hand_is_the_slope(similarity):
    """The formula that the gradients above are held to, against central differences of the definition."""
    shape, offsets, window = (1, 2, 2, 3, 3), (-1, 0, 1), (3, 3)
    features, upstream = sample(shape), sample((*shape[:-1], len(offsets), *window), seed=1)
    slope, step = np.zeros(shape), 1e-5
    for place in np.ndindex(*shape):
        change = np.zeros(shape)
        change[place] = step
        above, below = (stss_by_hand(features + sign * change, offsets, window, similarity) for sign in (1, -1))
        slope[place] = np.sum(upstream * (above - below)) / (2 * step)
    np.testing.assert_allclose(
        stss_gradient_by_hand(features, upstream, offsets, window, similarity)[0], slope, rtol=1e-6, atol=1e-7
    )


@SIMILARITY
def test_reference_in_float64_is_the_slope(similarity):
    """The definition's gradient by differences of the definition itself, in the one dtype that leaves them digits."""
    shape, offsets, window = (1, 3, 2, 3, 3), (-2, 0, 1), (3, 5)
    features, upstream = sample(shape), sample((*shape[:-1], len(offsets), *window), seed=1)
    directions = sample((5, *shape), seed=2)
    found = gradient_of(lambda x: reference(x, offsets, window, similarity), tf.constant(features), upstream).numpy()
    for direction in directions:
        above, below = (
            reference(tf.constant(features + sign * 1e-5 * direction), offsets, window, similarity).numpy()
            for sign in (1, -1)
        )
        assert above.dtype == "float64"
        slope = np.sum(upstream * (above - below)) / 2e-5
        np.testing.assert_allclose(np.sum(found * direction), slope, rtol=1e-7, atol=1e-7)


@SIMILARITY
def test_reference_has_second_derivatives(similarity):
    """Of sum(S²) / 2 along a direction, against differences of its gradient."""
    shape, offsets, window = (1, 2, 2, 3, 3), (-1, 0, 1), (3, 3)
    features, direction = sample(shape), sample(shape, seed=1)

    def slope(features):
        with tf.GradientTape() as tape:
            tape.watch(features)
            energy = tf.reduce_sum(reference(features, offsets, window, similarity) ** 2) / 2
        return tape.gradient(energy, features)

    found = gradient_of(slope, tf.constant(features), direction)
    above, below = (slope(tf.constant(features + sign * 1e-5 * direction)).numpy() for sign in (1, -1))
    np.testing.assert_allclose(found, (above - below) / 2e-5, rtol=1e-6, atol=1e-6)


@SIMILARITY
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_reference_keeps_bad_numbers_where_they_belong(similarity, bad):
    """A feature that is no number spoils the pairs that it is in, and no other; outside the clip all stays zero."""
    shape, offsets, window = (1, 3, 4, 5, 3), (-2, 0, 1, 7), (3, 7)
    clean = sample(shape, "float32")
    features = clean.copy()
    spoilt = {(0, 0, 0, 0), (0, 1, 3, 4), (0, 2, 1, 2)}
    for place in spoilt:
        features[place] = bad
    expected = stss_by_hand(clean, offsets, window, similarity)
    touched = np.zeros(expected.shape, bool)
    for place, one, other in pairs(shape, offsets, window):
        touched[place] = one in spoilt or other in spoilt
    found = reference(tf.cast(features, "float32"), offsets, window, similarity).numpy()
    assert not np.isfinite(found[touched]).any()
    assert error(np.where(touched, 0, found), np.where(touched, 0, expected)) < FORWARD["float32"]
    inside = np.zeros(expected.shape, bool)
    for place, _, _ in pairs(shape, offsets, window):
        inside[place] = True
    assert not found[~inside].any() and (~inside).sum() > 100


def test_reference_of_no_clips():
    features = tf.zeros((0, 3, 4, 5, 6))
    upstream = np.zeros((0, 3, 4, 5, 3, 3, 5))
    assert reference(features, (-1, 0, 5), (3, 5)).shape == upstream.shape
    found = gradient_of(lambda x: reference(x, (-1, 0, 5), (3, 5)), features, upstream)
    assert found.shape == features.shape


def test_stss_defaults():
    features = sample((1, 3, 4, 5, 3), "float32")
    found = stss(tf.cast(features, "float32"))
    assert found.shape == (1, 3, 4, 5, 5, 9, 9)
    assert error(found, stss_by_hand(features, (-2, -1, 0, 1, 2), (9, 9), "cosine")) < FORWARD["float32"]


def test_stss_takes_numpy_integers():
    features = np.ones((1, 2, 3, 3, 2), "float32")
    volume = stss(features, np.arange(2), np.array([3, 1]))
    np.testing.assert_array_equal(volume, stss(features, (0, 1), (3, 1)))


@pytest.mark.parametrize("channels", [4, None])
def test_stss_of_unknown_sizes(channels):
    """One graph, with no dimension known while it is traced, serves clips of any size."""
    offsets, window = (-2, 0, 1, 2), (3, 5)
    traces = []

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, None, channels), "float32")])
    def run(features):
        traces.append(features.shape)
        with tf.GradientTape() as tape:
            tape.watch(features)
            volume = reference(features, offsets, window)
        return volume, tape.gradient(volume, features)

    assert run.get_concrete_function().output_shapes[0].rank == 7
    for shape in [(1, 1, 2, 3, 4), (2, 4, 5, 3, 4), (0, 2, 3, 3, 4)]:
        features = sample(shape, "float32")
        volume, gradient = run(tf.cast(features, "float32"))
        assert volume.shape == (*shape[:-1], 4, 3, 5) and gradient.shape == shape
        if shape[0]:
            assert error(volume, stss_by_hand(features, offsets, window, "cosine")) < FORWARD["float32"]
            expected = stss_gradient_by_hand(features, np.ones(volume.shape), offsets, window, "cosine")
            assert error(gradient, *expected) < GRADIENT["float32"]
    assert len(traces) == 1


def test_stss_compiled():
    """XLA compiles the definition and its gradient."""
    shape, offsets, window = (1, 3, 4, 3, 2), (-1, 0, 1), (3, 3)
    features, upstream = sample(shape, "float32"), sample((*shape[:-1], 3, 3, 3), "float32", seed=1)
    run = tf.function(lambda x: gradient_of(lambda y: reference(y, offsets, window), x, upstream), jit_compile=True)
    expected = stss_gradient_by_hand(features, upstream, offsets, window, "cosine")
    assert error(run(tf.cast(features, "float32")), *expected) < GRADIENT["float32"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("known", [True, False])
def test_reference_as_lite(known):
    """LiteRT converts the definition, also to a model for any size, and keeps the epsilon."""
    shape, offsets, window = (1, 3, 4, 3, 4), (-1, 0, 1), (3, 5)
    features = 1e-3 * sample(shape, "float32")
    signature = [tf.TensorSpec(shape if known else (None, None, None, None, 4), "float32")]
    run = tf.function(lambda x: reference(x, offsets, window), input_signature=signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([run.get_concrete_function()], run)
    lite = tf.lite.Interpreter(model_content=converter.convert())
    place = lite.get_input_details()[0]["index"]
    lite.resize_tensor_input(place, shape)
    lite.allocate_tensors()
    lite.set_tensor(place, features.astype("float32"))
    lite.invoke()
    found = lite.get_tensor(lite.get_output_details()[0]["index"])
    assert error(found, stss_by_hand(features, offsets, window, "cosine")) < FORWARD["float32"]


def test_cosine_of_nothing_is_zero():
    """The epsilon stands inside the root: positions without features give zero and a finite gradient."""
    features = tf.zeros((1, 2, 3, 3, 4))
    np.testing.assert_array_equal(stss(features, (0, 1), (3, 3)), 0.0)
    gradient = gradient_of(lambda x: stss(x, (0, 1), (3, 3)), features, np.ones((1, 2, 3, 3, 2, 3, 3)))
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("scale", [1e-3, 300.0])
def test_cosine_in_half_precision_does_not_overflow(scale):
    """Squares of what float16 holds need not be in float16's range."""
    features = sample((1, 2, 3, 3, 8), "float16") * scale
    features = features.astype("float16").astype("float64")
    found = stss(tf.cast(features, "float16"), (0, 1), (3, 3))
    assert error(found, stss_by_hand(features, (0, 1), (3, 3), "cosine")) < FORWARD["float16"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"temporal_offsets": ()}, "temporal_offsets"),
        ({"temporal_offsets": (0, 0)}, "temporal_offsets"),
        ({"temporal_offsets": (0.5,)}, "temporal_offsets"),
        ({"temporal_offsets": (2**63,)}, "temporal_offsets"),
        ({"temporal_offsets": (float("inf"),)}, "temporal_offsets"),
        ({"window": (float("nan"), 3)}, "window"),
        ({"window": (3,)}, "window"),
        ({"window": (3, 3, 3)}, "window"),
        ({"window": (4, 3)}, "window"),
        ({"window": (3, -1)}, "window"),
        ({"window": (3, 0)}, "window"),
        ({"window": (3.5, 3)}, "window"),
        ({"window": 3}, "window"),
        ({"temporal_offsets": 1}, "temporal_offsets"),
        ({"temporal_offsets": "ab"}, "temporal_offsets"),
        ({"similarity": "euclidean"}, "similarity"),
        ({"implementation": "fast"}, "implementation"),
    ],
)
def test_stss_refuses(arguments, named):
    with pytest.raises(ValueError, match=f"{named}.*Received: {named}=") as caught:
        stss(tf.zeros((1, 2, 3, 3, 4)), **arguments)
    assert repr(arguments[named]) in str(caught.value) or str(arguments[named]) in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 3, 3, 4), (1, 1, 2, 3, 3, 4)])
def test_stss_refuses_other_ranks(shape):
    with pytest.raises(ValueError, match=r"\(B, T, H, W, C\)\. Received: shape="):
        stss(tf.zeros(shape))


@pytest.mark.parametrize("function", [stss, displacement])
def test_unknown_rank_is_refused(function):
    with pytest.raises(ValueError, match=r"\(B, T, H, W, C\)\. Received: shape=<unknown>"):
        tf.function(function, input_signature=[tf.TensorSpec(None, "float32")]).get_concrete_function()


def test_stss_refuses_whole_numbers_and_symbols():
    with pytest.raises(ValueError, match=r"floating-point.*dtype=uint8"):
        stss(tf.zeros((1, 2, 3, 3, 4), tf.uint8))
    with pytest.raises(ValueError, match="SpatioTemporalSelfSimilarity"):
        stss(keras.KerasTensor((None, 2, 3, 3, 4)))


def shift_by_hand(frames, n):
    moved = np.zeros_like(frames)
    for t in range(frames.shape[1]):
        if t + 1 < frames.shape[1]:
            moved[:, t, ..., :n] = frames[:, t + 1, ..., :n]
        if t > 0:
            moved[:, t, ..., n : 2 * n] = frames[:, t - 1, ..., n : 2 * n]
    moved[..., 2 * n :] = frames[..., 2 * n :]
    return moved


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32"])
@pytest.mark.parametrize(
    ("shape", "n"), [((2, 4, 2, 3, 8), 1), ((1, 3, 1, 2, 5), 2), ((1, 2, 2, 2, 4), 2), ((2, 1, 2, 2, 4), 1)]
)
def test_temporal_shift(shape, n, dtype):
    frames = np.random.default_rng(0).integers(1, 100, shape).astype("float64")
    found = temporal_shift(tf.cast(frames, dtype), n)
    assert found.dtype == dtype
    found = tf.cast(found, "float64").numpy()
    np.testing.assert_array_equal(found, shift_by_hand(frames, n))
    assert not found[:, -1, ..., :n].any() and not found[:, 0, ..., n : 2 * n].any()
    assert found[..., 2 * n :].all()


def test_temporal_shift_of_no_channels_is_identity():
    frames = tf.random.normal((1, 3, 2, 2, 4))
    np.testing.assert_array_equal(temporal_shift(frames, 0), frames)


def test_temporal_shift_gradient():
    """The gradient goes back where the value came from: the same shift the other way round."""
    frames, upstream = sample((2, 4, 2, 1, 6)), sample((2, 4, 2, 1, 6), seed=1)
    found = gradient_of(lambda x: temporal_shift(x, 2), tf.constant(frames), upstream)
    expected = shift_by_hand(upstream[:, ::-1], 2)[:, ::-1]
    np.testing.assert_array_equal(found, expected)


def test_temporal_shift_of_unknown_sizes():
    run = tf.function(
        lambda x: temporal_shift(x, 1), input_signature=[tf.TensorSpec((None, None, None, None, 5), "float32")]
    )
    for shape in [(1, 1, 2, 3, 5), (2, 4, 3, 1, 5)]:
        frames = sample(shape, "float32")
        np.testing.assert_array_equal(run(tf.cast(frames, "float32")), shift_by_hand(frames, 1).astype("float32"))


def test_temporal_shift_refuses():
    with pytest.raises(ValueError, match="Received: channels=3"):
        temporal_shift(ops.zeros((1, 2, 2, 2, 3)), 2)
    with pytest.raises(ValueError, match="Received: shape="):
        temporal_shift(ops.zeros((2, 2, 2, 8)), 1)
