"""The SELFY block: the authors' numbers, the paper's equation, learning, and life in someone else's model."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_stss.blocks import SELFYBlock
from keras_stss.layers import SpatioTemporalSelfSimilarity, TemporalShift

GOLDEN = Path(__file__).resolve().parent / "golden" / "selfy_block.npz"
SMALL = {"channels": 6, "window": (3, 3), "extraction_channels": (4, 8), "integration_channels": (6, 7)}


def sample(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as numbers:
        return {name: numbers[name] for name in numbers.files}


@pytest.fixture(scope="module")
def authors(golden):
    """The block with the authors' weights: entries in order, kernels turned to (height, width, in, out)."""
    block = SELFYBlock(channels=16, variant="released")
    block.build((None, None, None, None, 16))
    values = []
    for name in [name for name in golden if name.startswith("weight:")]:
        value = golden[name]
        if value.ndim == 5:
            value = value[:, :, 0]  # depth 1
        if value.ndim == 4:
            # A transposed convolution holds (in, out, …).
            value = value.transpose((2, 3, 0, 1) if "upsample" in name else (2, 3, 1, 0))
        values.append(value)
    block.set_weights(values)
    return block


def frames(golden, name):
    """(clips·frames, C, H, W) → (1, T, H, W, C)."""
    return golden[name].transpose(0, 2, 3, 1)[None]


@pytest.mark.parametrize("stage", ["features", "stss", "extracted", "output"])
def test_authors_numbers(golden, authors, stage):
    """Each stage on the authors' output of the stage before it; the whole block on their input."""
    volume = golden["stss"][:, :, :, :, 0]  # (B, T, H, W, L, U, V)
    if stage == "features":
        found, expected = authors.reduce(frames(golden, "input")), frames(golden, "features")
    elif stage == "stss":
        found, expected = authors.similarity_layer(frames(golden, "features")), volume
    elif stage == "extracted":
        # (L, C, T, H, W) for the one clip
        found, expected = authors.extract(volume), golden["extracted"].transpose(2, 3, 4, 0, 1)[None]
    else:
        found, expected = authors(frames(golden, "input")), frames(golden, "output")
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 6), (1, 1)])
@pytest.mark.parametrize("strides", [1, 2])
def test_paper_adds_after_its_relu(size, strides):
    """Z = ReLU(F* · Wθ) + V: never below V, above it somewhere, for odd sizes too."""
    inputs = sample((2, 3, *size, 5))
    block = SELFYBlock(strides=strides, **SMALL)
    motion = block(inputs, training=True).numpy() - inputs
    assert motion.shape == inputs.shape
    assert motion.min() > -1e-6
    assert motion.max() > 0.1
    # What the motion does not reach passes as it is, below zero too.
    still = motion == 0.0
    assert (inputs[still] < 0.0).any()
    stages = block.integrate(block.extract(block.similarity_layer(block.reduce(inputs)))).numpy()
    np.testing.assert_array_equal(block(inputs), inputs + stages[:, :, : size[0], : size[1]])


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_released_starts_as_relu(size):
    """Z = ReLU(F* · Wθ + V), with a scale that starts at zero."""
    inputs = sample((2, 3, *size, 5))
    block = SELFYBlock(variant="released", **SMALL)
    np.testing.assert_array_equal(block(inputs), np.maximum(inputs, 0.0))
    block.integrate.bn.beta.assign(np.full(5, -0.5))
    np.testing.assert_array_equal(block(inputs), np.maximum(inputs - 0.5, 0.0))


def gradients(block, inputs):
    with tf.GradientTape() as tape:
        outputs = block(inputs, training=True)
        loss = tf.reduce_sum(outputs * sample(outputs.shape, 1))
    weights = block.trainable_weights
    return dict(zip([w.path for w in weights], tape.gradient(loss, [w.value for w in weights])))


def test_paper_block_learns_from_the_first_step():
    block, inputs = SELFYBlock(**SMALL), sample((2, 3, 8, 8, 5))
    block(inputs)
    found = gradients(block, inputs)
    assert len(found) == 18
    for path, gradient in found.items():
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 1e-6, path


def test_released_block_begins_to_learn():
    """With its scale at zero only the last normalisation gets a gradient; after one step all weights do."""
    block, inputs = SELFYBlock(variant="released", **SMALL), sample((2, 3, 8, 8, 5))
    block(inputs)
    first = {path for path, gradient in gradients(block, inputs).items() if np.any(gradient)}
    assert {path.rsplit("/", 2)[-2] + "/" + path.rsplit("/", 1)[-1] for path in first} == {"bn/gamma", "bn/beta"}
    assert len(first) == 2
    optimizer = keras.optimizers.SGD(0.1)
    found = gradients(block, inputs)
    optimizer.apply(list(found.values()), block.trainable_weights)
    assert all(np.any(gradient) for gradient in gradients(block, inputs).values())


def test_block_sees_motion():
    """The same frames in another order give another result, not only the same results in another order."""
    block, clip = SELFYBlock(temporal_offsets=(-1, 0, 1), **SMALL), sample((1, 4, 8, 8, 5))
    block(clip)
    order = [2, 0, 3, 1]
    assert np.abs(block(clip[:, order]).numpy() - block(clip).numpy()[:, order]).max() > 1e-3
    still = SELFYBlock(temporal_offsets=(0,), **SMALL)
    still(clip)
    np.testing.assert_allclose(still(clip[:, order]), still(clip).numpy()[:, order], atol=1e-6)


def test_compiled_step():
    """XLA compiles a training step of the block."""
    inputs = keras.Input(batch_shape=(2, 3, 5, 6, 4))
    outputs = SELFYBlock(**{**SMALL, "integration_channels": (6,), "extraction_channels": (4,)})(inputs)
    model = keras.Model(inputs, outputs)
    before = model.get_weights()
    model.compile("sgd", "mse", jit_compile=True)
    loss = model.train_on_batch(sample((2, 3, 5, 6, 4)), sample((2, 3, 5, 6, 4), 1))
    assert np.isfinite(loss)
    assert not any(np.array_equal(new, old) for new, old in zip(model.get_weights(), before))


def someone_elses_model():
    """A hand-made functional model in which our layers stand between Keras' own."""
    clip = keras.Input((None, None, None, 3))
    x = keras.layers.Conv3D(8, (1, 3, 3), padding="same", activation="relu")(clip)
    x = TemporalShift(4)(x)
    x = keras.layers.TimeDistributed(keras.layers.Conv2D(8, 3, padding="same", activation="relu"))(x)
    x = SELFYBlock(temporal_offsets=(-1, 0, 1), name="motion", **SMALL)(x)
    x = SELFYBlock(temporal_offsets=(1,), **{**SMALL, "window": (5, 3)})(x)
    volume = SpatioTemporalSelfSimilarity((0, 1), (3, 5))(x)
    similarity = keras.layers.Reshape((-1, 2 * 3 * 5))(volume)
    similarity = keras.layers.GlobalAveragePooling1D()(similarity)
    pooled = keras.layers.GlobalAveragePooling3D()(x)
    joined = keras.layers.Concatenate()([pooled, similarity])
    return keras.Model(clip, keras.layers.Dense(3, name="head")(joined))


def test_someone_elses_model_saved_loaded_and_tuned(tmp_path):
    keras.utils.set_random_seed(0)
    model = someone_elses_model()
    clips, labels = sample((6, 4, 7, 8, 3)), np.arange(6) % 3
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.save(tmp_path / "theirs.keras")
    loaded = keras.saving.load_model(tmp_path / "theirs.keras")
    for shape in [(2, 4, 7, 8, 3), (1, 2, 5, 9, 3)]:
        np.testing.assert_array_equal(loaded(sample(shape, 2)), model(sample(shape, 2)))
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in model.layers]
    assert loaded.get_layer("motion").temporal_offsets == [-1, 0, 1]

    # Fine-tuning: our block frozen, statistics and all, the rest learns the six clips.
    frozen = loaded.get_layer("motion")
    frozen.trainable = False
    before = frozen.get_weights()
    loaded.compile(keras.optimizers.Adam(0.02), loss)
    losses = loaded.fit(clips, labels, batch_size=6, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.6 * losses[0]
    assert all(np.array_equal(new, old) for new, old in zip(frozen.get_weights(), before))
