"""Cross-entropy and the correlation loss against hand-computed cases and NumPy in float64."""

import math

import numpy as np
import pytest
import tensorflow as tf

from keras_stss.training.losses import cross_entropy, global_total, twins


def random_logits(seed, batch=6, classes=5, scale=1.0):
    """Two views of a batch that resemble each other; the means are not zero."""
    rng = np.random.default_rng(seed)
    first = rng.normal(0.5, 1.0, (batch, classes))
    return scale * first, scale * (first + rng.normal(size=first.shape))


# --- cross-entropy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_cross_entropy_by_hand(dtype):
    logits = tf.constant([[0.0, 0.0], [math.log(3.0), 0.0], [0.0, math.log(3.0)]])
    losses = cross_entropy(logits, tf.constant([0, 0, 0], dtype))
    np.testing.assert_allclose(losses, [math.log(2), math.log(4 / 3), math.log(4)], rtol=1e-6)
    smooth = cross_entropy(logits, tf.constant([0, 0, 0], dtype), 0.2)  # truth 0.9 and 0.1
    expected = [math.log(2), 0.9 * math.log(4 / 3) + 0.1 * math.log(4), 0.9 * math.log(4) + 0.1 * math.log(4 / 3)]
    np.testing.assert_allclose(smooth, expected, rtol=1e-6)


def test_cross_entropy_of_probabilities():
    """That of a blend of two labels is the blend of the labels' own."""
    logits = tf.constant(random_logits(1)[0], tf.float32)
    first, second = tf.constant([0, 1, 2, 3, 4, 0]), tf.constant([1, 1, 0, 0, 2, 2])
    part = np.array([0.0, 0.3, 0.5, 0.7, 1.0, 0.9])
    targets = part[:, None] * np.eye(5)[first] + (1 - part)[:, None] * np.eye(5)[second]
    for smoothing in (0.0, 0.1):
        blended = cross_entropy(logits, tf.constant(targets, tf.float32), smoothing)
        apart = [cross_entropy(logits, labels, smoothing).numpy() for labels in (first, second)]
        np.testing.assert_allclose(blended, part * apart[0] + (1 - part) * apart[1], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cross_entropy_of_half_precision_is_computed_in_float32(dtype):
    logits = tf.cast([[10.0, 9.0, -30.0], [200.0, -200.0, 0.0]], dtype)  # exact in both
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = cross_entropy(logits, tf.constant([1, 1]), 0.1)
    assert losses.dtype == tf.float32
    exact = np.array([[10.0, 9.0, -30.0], [200.0, -200.0, 0.0]])
    normalised = (
        exact - np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1, keepdims=True)) - exact.max(1)[:, None]
    )
    truth = np.full((2, 3), 0.1 / 3) + 0.9 * np.eye(3)[[1, 1]]
    np.testing.assert_allclose(losses, -(truth * normalised).sum(1), rtol=1e-5)
    assert np.isfinite(tf.cast(tape.gradient(losses, logits), tf.float32)).all()


# --- Twins -----------------------------------------------------------------------------------------------------------


def equations_8_and_9(first, second, beta):
    """As the paper has them, sum by sum, in float64."""
    lengths = [np.sqrt(np.square(y, dtype=np.float64).sum(0)) for y in (first, second)]
    first, second = (y / np.where(length > 1e-10, length, np.inf) for y, length in zip((first, second), lengths))
    loss, classes = 0.0, first.shape[1]
    for i in range(classes):
        for j in range(classes):
            lengths = math.sqrt((first[:, i] ** 2).sum()) * math.sqrt((second[:, j] ** 2).sum())
            c = sum(first[n, i] * second[n, j] for n in range(len(first))) / (lengths or 1.0)
            loss += (1 - c) ** 2 if i == j else beta * c**2
    return loss


def loss_and_gradients_of(first, second, beta, total=None):
    with tf.GradientTape() as tape:
        tape.watch([first, second])
        loss = twins(first, second, beta, total)
    return loss, tape.gradient(loss, [first, second])


def loss_and_gradients(first, second, beta, dtype="float32", total=None):
    loss, gradients = loss_and_gradients_of(tf.cast(first, dtype), tf.cast(second, dtype), beta, total)
    return loss, [tf.cast(gradient, tf.float32).numpy() for gradient in gradients]


def test_twins_by_hand():
    """Columns (3, 4), (0, 1) and (4, 3), (1, 0): C = [[24/25, 3/5], [3/5, 0]]."""
    first, second = np.array([[3.0, 0.0], [4.0, 1.0]]), np.array([[4.0, 1.0], [3.0, 0.0]])
    assert float(twins(first, second, 0.0)) == pytest.approx(0.04**2 + 1.0, rel=1e-6)
    assert float(twins(first, second, 0.5)) == pytest.approx(0.04**2 + 1.0 + 0.5 * (0.36 + 0.36), rel=1e-6)
    assert float(twins(first, -first, 0.0)) == pytest.approx(2 * 4.0)  # opposite views: C_ii = -1
    assert float(twins([[1.0], [1.0]], [[1.0], [3.0]], 0.5)) == pytest.approx(
        (1 - 2 / math.sqrt(5)) ** 2
    )  # no centring


@pytest.mark.parametrize(("batch", "classes"), [(6, 5), (3, 8), (1, 4)])
@pytest.mark.parametrize("beta", [0.0039, 0.7])
def test_twins_is_that_of_numpy(batch, classes, beta):
    first, second = random_logits(batch, batch, classes)
    loss, gradients = loss_and_gradients(first, second, beta)
    assert float(loss) == pytest.approx(equations_8_and_9(first, second, beta), rel=1e-5, abs=1e-6)
    step, views = 1e-5, (first, second)
    for view, gradient in zip(views, gradients, strict=True):
        for place in np.ndindex(view.shape):
            moved = [np.array(each) for each in (view, view)]
            moved[0][place] += step
            moved[1][place] -= step
            ends = [equations_8_and_9(*(m if each is view else each for each in views), beta) for m in moved]
            assert gradient[place] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3, abs=1e-5)


def test_each_class_may_have_its_scale():
    """The loss does not change with the length of a class's logits, and the gradient is inversely as long."""
    first, second = random_logits(3)
    scale = np.array([1e-6, 1e-3, 1.0, 1e3, 1e6])
    loss, gradients = loss_and_gradients(first, second, 0.1)
    other, scaled = loss_and_gradients(first * scale, second, 0.1)
    assert float(other) == pytest.approx(float(loss), rel=1e-5)
    np.testing.assert_allclose(scaled[0] * scale, gradients[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scaled[1], gradients[1], rtol=1e-4, atol=1e-6)


def test_equal_views_of_independent_classes_have_no_loss():
    first = np.linalg.qr(random_logits(4)[0])[0]
    loss, gradients = loss_and_gradients(first, 3.0 * first, 1.0)
    assert float(loss) == pytest.approx(0.0, abs=1e-10)
    assert max(np.abs(gradient).max() for gradient in gradients) < 1e-5


@pytest.mark.parametrize(("value", "xla"), [(0.0, False), (0.0, True), (1e-30, False)])
def test_a_class_without_logits_is_harmless(value, xla):
    """It correlates with nothing: 1 from its own term, and no gradient, wherever it has none.

    XLA, unlike TensorFlow's CPU kernels, does not spare a 0 · ∞ of a careless gradient.
    """
    compute = tf.function(loss_and_gradients_of, jit_compile=True) if xla else loss_and_gradients_of
    rest = equations_8_and_9(*(view[:, 1:] for view in random_logits(5)), 0.2)
    for without in ((0, 1), (0,), (1,)):
        views = random_logits(5)
        for number in without:
            views[number][:, 0] = value
        loss, gradients = compute(*(tf.constant(view, tf.float32) for view in views), 0.2)
        gradients = [gradient.numpy() for gradient in gradients]
        assert float(loss) == pytest.approx(equations_8_and_9(*views, 0.2), rel=1e-5)
        if len(without) == 2:
            assert float(loss) == pytest.approx(1.0 + rest, rel=1e-5)
        for number, gradient in enumerate(gradients):
            assert np.isfinite(gradient).all()
            assert gradient[:, 0].any() == (number not in without)
            assert gradient[:, 1:].all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_twins_of_half_precision_is_computed_in_float32(dtype):
    """Sums of squares beyond float16, and differences from 1 that bfloat16 has not."""
    first, second = (np.asarray(tf.cast(tf.cast(y, dtype), tf.float32)) for y in random_logits(6, scale=300.0))
    loss, gradients = loss_and_gradients(first, second, 0.0039, dtype)
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(equations_8_and_9(first, second, 0.0039), rel=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_one_replica_needs_no_exchange():
    total = global_total(tf.distribute.get_replica_context())
    first, second = random_logits(7)
    alone, together = (loss_and_gradients(first, second, 0.1, total=each) for each in (None, total))
    assert float(alone[0]) == float(together[0])
    np.testing.assert_array_equal(alone[1], together[1])
