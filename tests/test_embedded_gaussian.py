"""Similarity between queries and keys, and the embedded Gaussian, against loops in float64."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_stss.layers import SpatioTemporalSelfSimilarity
from keras_stss.ops import displacement, stss

#: (B, T, H, W, C), temporal offsets, (U, V).
TABLE = {
    "usual": ((2, 3, 5, 4, 6), (-2, -1, 0, 1, 2), (3, 3)),
    "uneven": ((1, 4, 3, 6, 3), (-3, 2), (5, 1)),
    "beyond the map": ((1, 2, 2, 3, 4), (0, 1), (9, 11)),
    "one position": ((2, 3, 1, 1, 4), (-1, 0, 1), (3, 3)),
    "next alone": ((1, 3, 4, 3, 3), (1,), (3, 3)),
    "not in order": ((1, 3, 3, 2, 4), (2, -1, 0, 7), (3, 3)),
}
CASES = pytest.mark.parametrize(("shape", "offsets", "window"), TABLE.values(), ids=TABLE.keys())


def sample(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def pairs(shape, offsets, window):
    """All (index of the output, index of the query, index of the key) where both lie inside the clip."""
    batch, time, height, width, _ = shape
    for b, t, y, x, number, u, v in itertools.product(*map(range, (batch, time, height, width, len(offsets), *window))):
        other = (b, t + offsets[number], y + u - window[0] // 2, x + v - window[1] // 2)
        if all(0 <= place < size for place, size in zip(other[1:], (time, height, width))):
            yield (b, t, y, x, number, u, v), (b, t, y, x), other


def by_hand(queries, keys, offsets, window, similarity):
    queries, keys = queries.astype("float64"), keys.astype("float64")
    if similarity == "cosine":
        queries, keys = (x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + 1e-6) for x in (queries, keys))
    volume = np.zeros((*queries.shape[:-1], len(offsets), *window))
    for place, one, other in pairs(queries.shape, offsets, window):
        product = queries[one] @ keys[other]
        volume[place] = np.exp(product) if similarity == "embedded_gaussian" else product
    if similarity == "embedded_gaussian":
        total = volume.sum(axis=(-3, -2, -1), keepdims=True)
        volume = np.divide(volume, total, out=volume, where=total > 0)
    return volume


@CASES
@pytest.mark.parametrize("similarity", ["cosine", "dot", "embedded_gaussian"])
def test_queries_and_keys_by_hand(shape, offsets, window, similarity):
    queries, keys = sample(shape), sample(shape, 1)
    found = stss(queries, offsets, window, similarity, keys=keys)
    np.testing.assert_allclose(found, by_hand(queries, keys, offsets, window, similarity), rtol=1e-5, atol=2e-6)


@CASES
@pytest.mark.parametrize("similarity", ["cosine", "dot", "embedded_gaussian"])
def test_features_are_their_own_keys(shape, offsets, window, similarity):
    features = sample(shape)
    expected = stss(features, offsets, window, similarity, "reference")
    np.testing.assert_allclose(stss(features, offsets, window, similarity, keys=features), expected, atol=1e-6)


@CASES
def test_weights_sum_to_one_inside_the_clip(shape, offsets, window):
    """Exactly zero outside, positive inside; one over (L, U, V) wherever a neighbour exists, zero where none does."""
    volume = stss(3.0 * sample(shape), offsets, window, "embedded_gaussian", keys=sample(shape, 1)).numpy()
    inside = np.zeros(volume.shape, bool)
    for place, _, _ in pairs(shape, offsets, window):
        inside[place] = True
    assert not volume[~inside].any() and (volume[inside] > 0).all()
    np.testing.assert_allclose(volume.sum((-3, -2, -1)), inside.any((-3, -2, -1)), atol=1e-5)


def test_large_products_do_not_overflow():
    """The exponential of hundreds is taken relative to the largest, in half precision too."""
    queries, keys = 30.0 * sample((1, 2, 3, 3, 8)), 30.0 * sample((1, 2, 3, 3, 8), 1)
    expected = np.argmax(by_hand(queries, keys, (0, 1), (3, 3), "dot").reshape(1, 2, 3, 3, -1), axis=-1)
    for dtype in ("float32", "float16", "bfloat16"):
        found = stss(tf.cast(queries, dtype), (0, 1), (3, 3), "embedded_gaussian", keys=tf.cast(keys, dtype))
        assert found.dtype == dtype
        flat = tf.cast(found, "float32").numpy().reshape(1, 2, 3, 3, -1)
        assert np.isfinite(flat).all()
        sure = flat.max(axis=-1) > 0.9
        assert sure.sum() > 5
        # Products that are negative compare with the zeros outside the clip in the volume alone.
        np.testing.assert_array_equal(flat.argmax(axis=-1)[sure & (expected > 0)], expected[sure & (expected > 0)])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_half_precision_rounds_the_weights_alone(dtype, tolerance):
    shape, offsets, window = (1, 3, 4, 3, 16), (-1, 0, 1), (3, 3)
    queries, keys = (tf.cast(sample(shape, seed), dtype) for seed in (0, 1))
    found = stss(queries, offsets, window, "embedded_gaussian", keys=keys)
    wide = [tf.cast(value, "float32").numpy() for value in (queries, keys)]
    expected = by_hand(*wide, offsets, window, "embedded_gaussian")
    np.testing.assert_allclose(tf.cast(found, "float32"), expected, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("similarity", ["cosine", "dot", "embedded_gaussian"])
def test_gradients_are_slopes(similarity):
    """Of queries and of keys apart, against differences of the definition in float64."""
    shape, offsets, window = (1, 3, 2, 3, 3), (-2, 0, 1), (3, 5)
    values = [sample(shape, seed).astype("float64") for seed in (0, 1)]
    upstream = sample((*shape[:-1], len(offsets), *window), 2).astype("float64")
    tensors = [tf.constant(value) for value in values]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        outputs = stss(tensors[0], offsets, window, similarity, keys=tensors[1])
    gradients = tape.gradient(outputs, tensors, output_gradients=tf.constant(upstream))
    for number, gradient in enumerate(gradients):
        direction = sample(shape, 3 + number).astype("float64")
        moved = [
            [value + sign * 1e-5 * direction * (i == number) for i, value in enumerate(values)] for sign in (1, -1)
        ]
        above, below = (by_hand(*each, offsets, window, similarity) for each in moved)
        np.testing.assert_allclose(np.sum(gradient * direction), np.sum(upstream * (above - below)) / 2e-5, rtol=1e-6)


def test_unknown_sizes_and_xla():
    """One graph of unknown sizes serves any clip, a compiled one gives the same."""
    offsets, window = (-2, 0, 1), (3, 5)

    def run(queries, keys):
        return stss(queries, offsets, window, "embedded_gaussian", keys=keys)

    free = tf.TensorSpec((None, None, None, None, 4))
    graph = tf.function(run, input_signature=[free, free])
    for shape in [(1, 1, 2, 3, 4), (2, 4, 5, 3, 4)]:
        values = sample(shape), sample(shape, 1)
        expected = by_hand(*values, offsets, window, "embedded_gaussian")
        for function in (graph, tf.function(run, jit_compile=True)):
            np.testing.assert_allclose(function(*values), expected, rtol=1e-5, atol=1e-6)


# -- the layer ------------------------------------------------------------------------------------------------------


def test_layer_projects_before_it_compares():
    features = sample((1, 3, 4, 3, 6))
    layer = SpatioTemporalSelfSimilarity((-1, 1), (3, 5), "embedded_gaussian", channels=4)
    found = layer(features)
    theta, phi = layer.get_weights()
    assert theta.shape == phi.shape == (6, 4) and not np.array_equal(theta, phi)
    assert [weight.path.split("/")[-2] for weight in layer.weights] == ["theta", "phi"]
    expected = by_hand(features @ theta, features @ phi, (-1, 1), (3, 5), "embedded_gaussian")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    whole = SpatioTemporalSelfSimilarity((-1, 1), (3, 5), "embedded_gaussian")
    whole.build(features.shape)
    assert [weight.shape for weight in whole.weights] == [(6, 6)] * 2


def test_old_configs_still_make_a_layer():
    """Those that were written before there were projections."""
    config = {"temporal_offsets": [0, 1], "window": [3, 3], "similarity": "dot", "implementation": "auto"}
    layer = SpatioTemporalSelfSimilarity.from_config({"name": "similarity", **config})
    assert layer(sample((1, 2, 3, 3, 4))).shape == (1, 2, 3, 3, 2, 3, 3)
    assert not layer.weights


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({"similarity": "embedded_gaussian", "implementation": "native"}, "implementation='native'"),
        ({"channels": 4}, "channels=4"),
        ({"similarity": "embedded_gaussian", "channels": 0}, "channels=0"),
        ({"similarity": "gaussian"}, "similarity='gaussian'"),
    ],
)
def test_layer_refuses(arguments, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        SpatioTemporalSelfSimilarity(**arguments)


@pytest.mark.parametrize("keys", [np.zeros((1, 2, 3, 3, 5), "float32"), np.zeros((2, 3, 3), "float32")])
def test_keys_of_another_shape_are_refused(keys):
    with pytest.raises(ValueError, match=r"keys must have shape \(1, 2, 3, 3, 4\).*Received: shape="):
        stss(tf.zeros((1, 2, 3, 3, 4)), keys=keys)


def test_keys_of_another_dtype_are_refused():
    features = tf.zeros((1, 2, 3, 3, 4))
    with pytest.raises(ValueError, match=r"dtype float32.*dtype=float16"):
        stss(features, keys=tf.cast(features, "float16"))


def test_native_takes_no_keys():
    features = tf.zeros((1, 2, 3, 3, 4))
    with pytest.raises(ValueError, match=r"native operation takes no keys.*Received: keys"):
        stss(features, implementation="native", keys=features)
    with pytest.raises(ValueError, match=r"use 'auto' or 'reference'.*Received: implementation='native'"):
        stss(features, similarity="embedded_gaussian", implementation="native")


def test_displacement_has_no_embedded_gaussian():
    with pytest.raises(ValueError, match=r"similarity must be one of .*'dot'.. Received"):
        displacement(tf.zeros((1, 2, 3, 3, 4)), similarity="embedded_gaussian")
