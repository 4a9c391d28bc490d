"""The rivals of the papers' tables: each block against plain float64 NumPy, and what holds whatever its weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from seeded import randomize, sample

from keras_stss.blocks import CorrelationBlock, CorrespondenceBlock, LocalAttentionBlock, NonLocalBlock

BLOCKS = {
    "non-local": (NonLocalBlock, {}),
    "non-local-subsampled": (NonLocalBlock, {"channels": 3, "subsample": True}),
    "correspondence": (CorrespondenceBlock, {"neighbors": 3}),
    "correlation": (CorrelationBlock, {"channels": 4, "window": (3, 5), "groups": 2, "dilation": 2}),
    "local-attention": (
        LocalAttentionBlock,
        {"temporal_offsets": (-1, 0, 1), "window": (3, 5), "channels": 4, "integration_channels": (5,)},
    ),
}
EVERY_BLOCK = pytest.mark.parametrize("kind", BLOCKS)


def make(kind, shape, **changes):
    layer, arguments = BLOCKS[kind]
    block = layer(**{**arguments, **changes})
    block.build(shape)
    return randomize(block)


def conv_bn(inputs, layer, relu=True):
    """A 1×1 :class:`ConvBN` of any maps, at inference."""
    gamma, beta, mean, variance = (np.float64(weight) for weight in layer.bn.weights)
    outputs = inputs @ np.float64(layer.conv.kernel)[0, 0]
    outputs = (outputs - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    return np.maximum(outputs, 0.0) if relu else outputs


def softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("subsample", [False, True])
def test_non_local_by_hand(subsample):
    """Every position is the mean of the values of all positions, weighed by the softmax of scaled products."""
    inputs = sample((2, 3, 3, 4, 6))
    block = make("non-local", inputs.shape, channels=5, subsample=subsample)
    wide = np.float64(inputs)
    others = wide
    if subsample:
        padded = np.pad(wide, ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0)), constant_values=-np.inf)
        others = padded.reshape(2, 3, 2, 2, 2, 2, 6).max(axis=(3, 5))
    expected = np.zeros_like(wide)
    for b in range(2):
        queries = wide[b].reshape(-1, 6) @ np.float64(block.theta.kernel) + np.float64(block.theta.bias)
        keys, values = (others[b].reshape(-1, 6) @ np.float64(layer.kernel) for layer in (block.phi, block.g))
        gathered = softmax(queries @ keys.T / np.sqrt(5)) @ values
        expected[b] = wide[b] + conv_bn(gathered, block.project, relu=False).reshape(3, 3, 4, 6)
    np.testing.assert_allclose(block(inputs), expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["non-local", "correspondence"])
def test_whole_clip_blocks_know_no_order_of_space(kind):
    """All rows turned over: so is the result, whatever the rows. Frames in another order: so is that of non-local."""
    inputs = sample((1, 3, 4, 5, 8))
    block = make(kind, inputs.shape)
    if kind == "correspondence":  # without the share of where things lie
        kernel = block.embed[0].conv.kernel
        kernel.assign(np.concatenate([np.zeros((1, 1, 3, kernel.shape[-1])), kernel[:, :, 3:]], axis=2))
    expected = block(inputs).numpy()
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(block(inputs[:, :, order]), expected[:, :, order], atol=1e-4)
    np.testing.assert_allclose(block(inputs[:, [1, 2, 0]]), expected[:, [1, 2, 0]], atol=1e-4)


def proposals(clip, neighbors):
    """{(t, y, x): its nearest positions of other frames} of one clip (T, H, W, C)."""
    places = list(np.ndindex(*clip.shape[:3]))
    chosen = {}
    for place in places:
        others = [other for other in places if other[0] != place[0]]
        chosen[place] = sorted(others, key=lambda other: np.sum((clip[place] - clip[other]) ** 2))[:neighbors]
    return chosen


@pytest.mark.parametrize("time", [2, 3])
@pytest.mark.parametrize("neighbors", [1, 4, 50])
def test_correspondence_by_hand(time, neighbors):
    """Also where there are fewer positions in other frames than neighbours."""
    inputs = sample((2, time, 3, 4, 6))
    block = make("correspondence", inputs.shape, neighbors=neighbors, channels=(5, 7))
    expected = np.float64(inputs)
    for b in range(2):
        clip = np.float64(inputs[b])
        for place, chosen in proposals(clip, neighbors).items():
            way = (np.array(chosen) - place) / np.array(clip.shape[:3])
            pairs = [np.concatenate([step, clip[place], clip[other]]) for step, other in zip(way, chosen)]
            seen = conv_bn(conv_bn(np.array(pairs), block.embed[0]), block.embed[1]).max(axis=0)
            expected[b][place] += conv_bn(seen, block.project, relu=False)
    np.testing.assert_allclose(block(inputs), expected, atol=2e-5)


def test_correspondence_of_one_frame_is_the_input():
    inputs = sample((2, 1, 3, 4, 6))
    block = make("correspondence", (None, None, None, None, 6))
    np.testing.assert_array_equal(block(inputs), inputs)
    traced = tf.function(block, input_signature=[tf.TensorSpec((None, None, None, None, 6))])
    np.testing.assert_array_equal(traced(inputs), inputs)
    assert np.abs(traced(sample((2, 2, 1, 1, 6))) - sample((2, 2, 1, 1, 6))).max() > 0.1


def test_correspondence_finds_what_moved():
    """Colours all different that go 1 down and 2 right: the one proposal of each is itself, and its way is known."""
    picture = sample((1, 1, 6, 7, 8))
    inputs = np.concatenate([picture, np.roll(picture, (1, 2), axis=(2, 3))], axis=1)
    block = make("correspondence", inputs.shape, neighbors=1)
    points = tf.reshape(inputs, (1, -1, 8))
    chosen = block._proposals(points, 2).numpy().reshape(2, 6, 7)
    rows, columns = np.indices((6, 7))
    np.testing.assert_array_equal(chosen[0], 42 + (rows + 1) % 6 * 7 + (columns + 2) % 7)
    np.testing.assert_array_equal(chosen[1], (rows - 1) % 6 * 7 + (columns - 2) % 7)


@pytest.mark.parametrize(
    ("window", "dilation", "groups"), [((3, 5), 1, 2), ((3, 3), 2, 4), ((1, 1), 1, 1), ((7, 3), 1, 1)]
)
def test_correlation_by_hand(window, dilation, groups):
    """Every sum on its own; the first frame against itself, zeros outside."""
    inputs = sample((2, 3, 4, 5, 6))
    block = make("correlation", inputs.shape, window=window, dilation=dilation, groups=groups)
    features, filters = conv_bn(np.float64(inputs), block.reduce), np.float64(block.filters)
    volume = np.zeros((2, 3, 4, 5, *window, groups))
    share = 4 // groups
    for b, t, y, x, i, j, n in np.ndindex(*volume.shape):
        row, column = y + (i - window[0] // 2) * dilation, x + (j - window[1] // 2) * dilation
        if 0 <= row < 4 and 0 <= column < 5:
            part = slice(n * share, (n + 1) * share)
            other = features[b, max(t - 1, 0), row, column]
            volume[b, t, y, x, i, j, n] = np.mean((filters[i, j] * features[b, t, y, x] * other)[part])
    expected = np.maximum(inputs + conv_bn(volume.reshape(2, 3, 4, 5, -1), block.restore, relu=False), 0.0)
    np.testing.assert_allclose(block(inputs), expected, atol=2e-5)


def test_correlation_moves_with_the_picture():
    """A clip moved by one position gives the result moved by one, away from the border."""
    inputs = sample((1, 2, 9, 9, 8))
    block = make("correlation", inputs.shape, window=(3, 3), dilation=1)
    moved = block(np.roll(inputs, (1, -1), axis=(2, 3))).numpy()
    expected = np.roll(block(inputs).numpy(), (1, -1), axis=(2, 3))
    np.testing.assert_allclose(moved[:, :, 2:-2, 2:-2], expected[:, :, 2:-2, 2:-2], atol=1e-5)
    assert np.abs(moved - expected).max() > 1e-3


def attention_by_hand(block, features):
    """What :class:`LocalAttentionBlock` gathers from reduced features, position by position; zeros where nothing is."""
    queries, keys, values = (
        np.float64(features) @ np.float64(each.kernel) for each in (block.query, block.key, block.value)
    )
    batch, time, height, width, channels = features.shape
    result = np.zeros(features.shape)
    along = [block.along_time, block.along_rows, block.along_columns]
    for place in np.ndindex(batch, time, height, width):
        b, t, y, x = place
        scores, found = [], []
        for number, offset in enumerate(block.temporal_offsets):
            for i, j in np.ndindex(*block.window):
                other = t + offset, y + i - block.window[0] // 2, x + j - block.window[1] // 2
                if all(0 <= at < size for at, size in zip(other, (time, height, width))):
                    r = np.zeros(channels)
                    r += along[0][number].numpy() if along[0] is not None else 0.0
                    r[: channels // 2] += along[1][i].numpy() if along[1] is not None else 0.0
                    r[channels // 2 :] += along[2][j].numpy() if along[2] is not None else 0.0
                    scores.append(queries[place] @ (keys[b][other] + r))
                    found.append(values[b][other])
        if found:
            result[place] = softmax(np.array(scores)) @ np.array(found)
    return result


@pytest.mark.parametrize(
    ("offsets", "window", "time"),
    [((-1, 0, 1), (3, 5), 3), ((0,), (3, 3), 2), ((1,), (1, 1), 2), ((2, -3), (9, 1), 2), ((1, 4), (1, 3), 1)],
)
def test_local_attention_by_hand(offsets, window, time):
    """Windows that end at every border of the clip; offsets beyond the clip; positions that see nothing at all."""
    block = make("local-attention", (None, None, None, None, 6), temporal_offsets=offsets, window=window)
    features = sample((2, time, 4, 5, 4), 1)
    np.testing.assert_allclose(block._attend(features), attention_by_hand(block, features), atol=2e-5)


@pytest.mark.parametrize(("size", "strides"), [((8, 8), 2), ((7, 9), 2), ((4, 5), 1), ((1, 1), 2)])
def test_local_attention_reduces_integrates_and_adds(size, strides):
    inputs = sample((2, 3, *size, 6))
    block = make("local-attention", inputs.shape, strides=strides)
    features = block.reduce(inputs)
    motion = block.integrate(attention_by_hand(block, features.numpy())[..., None, :].astype("float32")).numpy()
    np.testing.assert_allclose(block(inputs), inputs + motion[:, :, : size[0], : size[1]], atol=2e-5)
    assert np.abs(motion).max() > 0.1


@pytest.mark.parametrize("offsets", [(-1, 0, 1), (1,)])
def test_local_attention_looks_no_further_than_its_window(offsets):
    block = make("local-attention", (None, None, None, None, 6), temporal_offsets=offsets, window=(3, 5))
    block.query.kernel.assign(block.query.kernel * 0.1)  # so that no weight is too small to count
    features = sample((1, 4, 6, 7, 4))
    before, (t, y, x) = block._attend(features).numpy(), (2, 3, 3)
    features[0, t, y, x] += 1.0
    changed = np.abs(block._attend(features).numpy() - before)[0].max(axis=-1) > 0.0
    reach = np.zeros_like(changed)
    for offset in offsets:
        reach[t - offset, y - 1 : y + 2, x - 2 : x + 3] = True
    reach[t, y, x] = True  # its own query
    np.testing.assert_array_equal(changed, reach)


@pytest.mark.parametrize("kind", ["non-local", "non-local-subsampled", "correspondence"])
def test_a_new_block_is_the_identity(kind):
    layer, arguments = BLOCKS[kind]
    inputs = sample((2, 3, 4, 5, 8))
    block = layer(**arguments)
    np.testing.assert_array_equal(block(inputs), inputs)
    assert not block.project.bn.gamma.numpy().any()


def gradients(block, inputs):
    with tf.GradientTape() as tape:
        outputs = block(inputs, training=True)
        loss = tf.reduce_sum(tf.cast(outputs, "float32") * sample(outputs.shape, 1))
    weights = block.trainable_weights
    return dict(zip([weight.path for weight in weights], tape.gradient(loss, [weight.value for weight in weights])))


@EVERY_BLOCK
@pytest.mark.parametrize("precision", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_every_weight_learns(kind, precision):
    inputs = sample((2, 4, 6, 7, 8))
    block = make(kind, inputs.shape, dtype=precision)
    for path, gradient in gradients(block, inputs).items():
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 1e-6, path


@EVERY_BLOCK
def test_the_gradient_is_the_slope(kind):
    """Against central differences, in float64."""
    inputs, step = np.float64(sample((1, 3, 3, 4, 8))), 1e-5
    block = make(kind, inputs.shape, dtype="float64")
    weight = tf.constant(np.float64(sample(inputs.shape, 1)))

    def loss(values):
        return tf.reduce_sum(block(values) * weight)

    with tf.GradientTape() as tape:
        values = tf.constant(inputs)
        tape.watch(values)
        outputs = loss(values)
    found = tape.gradient(outputs, values).numpy()
    for place in np.random.default_rng(2).permutation(list(np.ndindex(inputs.shape)))[:12]:
        ahead, behind = inputs.copy(), inputs.copy()
        ahead[tuple(place)] += step
        behind[tuple(place)] -= step
        slope = (loss(ahead) - loss(behind)) / (2 * step)
        assert found[tuple(place)] == pytest.approx(float(slope), rel=1e-4, abs=1e-6)


@EVERY_BLOCK
def test_half_precision_is_near(kind):
    inputs = sample((1, 3, 5, 4, 8))
    exact = make(kind, inputs.shape)(inputs).numpy()
    for precision, tolerance in (("mixed_float16", 0.02), ("mixed_bfloat16", 0.15)):
        found = make(kind, inputs.shape, dtype=precision)(inputs)
        assert found.dtype == precision.removeprefix("mixed_")
        # Where rounding swaps two proposals that are equally near, single positions may differ.
        assert np.mean(np.abs(np.float32(found) - exact)) < tolerance * np.abs(exact).max()


@EVERY_BLOCK
def test_unknown_sizes(kind):
    """One traced function serves any size, down to a single position."""
    block = make(kind, (None, None, None, None, 8))
    traced = tf.function(block, input_signature=[tf.TensorSpec((None, None, None, None, 8))])
    for shape in [(2, 3, 4, 5, 8), (1, 1, 1, 1, 8), (1, 2, 1, 3, 8), (3, 5, 2, 2, 8)]:
        np.testing.assert_allclose(traced(sample(shape)), block(sample(shape)), atol=1e-4)


@EVERY_BLOCK
def test_compiled_step_and_file(kind, tmp_path):
    """XLA compiles a training step; the saved model gives the same numbers."""
    layer, arguments = BLOCKS[kind]
    inputs = keras.Input(batch_shape=(2, 3, 4, 5, 8))
    model = keras.Model(inputs, layer(**arguments)(inputs))
    randomize(model)
    before = model.get_weights()
    model.compile("sgd", "mse", jit_compile=True)
    assert np.isfinite(model.train_on_batch(sample(inputs.shape), sample(inputs.shape, 1)))
    assert not any(np.array_equal(new, old) for new, old in zip(model.get_weights(), before))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(loaded(sample(inputs.shape)), model(sample(inputs.shape)))


@pytest.mark.parametrize(
    ("layer", "arguments", "received"),
    [
        (NonLocalBlock, {"channels": 0}, "channels=0"),
        (CorrespondenceBlock, {"neighbors": 0}, "neighbors=0"),
        (CorrespondenceBlock, {"channels": (3,)}, r"channels=\(3,\)"),
        (CorrelationBlock, {"channels": -1}, "channels=-1"),
        (CorrelationBlock, {"window": (4, 3)}, r"window=\(4, 3\)"),
        (CorrelationBlock, {"dilation": 0}, "dilation=0"),
        (LocalAttentionBlock, {"window": (4, 3)}, r"window=\(4, 3\)"),
        (LocalAttentionBlock, {"temporal_offsets": (1, 1)}, r"temporal_offsets=\(1, 1\)"),
        (LocalAttentionBlock, {"channels": 3}, "channels=3"),
        (LocalAttentionBlock, {"strides": 4}, "strides=4"),
    ],
)
def test_refuses(layer, arguments, received):
    with pytest.raises(ValueError, match=f"Received: .*{received}"):
        layer(**arguments)


def test_groups_must_divide():
    with pytest.raises(ValueError, match=r"16 channels that are compared\. Received: groups=32"):
        CorrelationBlock(groups=32).build((None, None, None, None, 64))


def test_the_size_of_the_rivals_after_res3():
    """Parameters at 128 channels, counted by hand: kernels, biases, and two numbers a normalised channel."""
    sizes = {
        NonLocalBlock: 3 * 128 * 64 + 64 + 64 * 128 + 256,
        CorrespondenceBlock: 259 * 32 + 64 + 32 * 64 + 128 + 64 * 128 + 256,
        CorrelationBlock: 128 * 32 + 64 + 49 * 32 + 49 * 32 * 128 + 256,
    }
    for layer, expected in sizes.items():
        block = layer()
        block.build((None, 8, 28, 28, 128))
        assert sum(int(np.prod(weight.shape)) for weight in block.trainable_weights) == expected
