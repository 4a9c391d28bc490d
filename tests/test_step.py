"""One step: the same update however it is computed, and what each recipe makes of a batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_stss.config import ConfigError, parse_config
from keras_stss.models import build_model
from keras_stss.training.batch_norm import prepare_batch_norm, statistics
from keras_stss.training.groups import parameter_groups
from keras_stss.training.losses import cross_entropy, twins
from keras_stss.training.optimizer import MomentumSGD
from keras_stss.training.step import Figures, make_step

BATCH, CLASSES = 4, 3


def config_of(**train):
    model = {"backbone": "resnet10", "width": 8, "dropout": 0.0}
    train = {"batch_size": BATCH, "learning_rate": 0.05, "clip_norm": None, **train}
    return parse_config({"data": {"format": "something_v2", "root": "x"}, "model": model, "train": train})


class Trained:
    """A tiny TSM and its figures after some steps on the same clips."""

    def __init__(self, steps=3, batch=None, **train):
        config = config_of(**train)
        keras.utils.set_random_seed(7)
        self.model = build_model(config, classes=CLASSES)
        prepare_batch_norm(self.model, config.train)
        self.optimizer = MomentumSGD(parameter_groups(self.model, config.train), config.train, statistics(self.model))
        strategy = tf.distribute.get_strategy()
        self.step = make_step(strategy, self.model, self.optimizer, config.train)
        self.batch = batch or clips()
        self.before = [variable.numpy() for variable in self.model.variables]
        self.figures = [self.go() for _ in range(steps)]

    def go(self, rate=0.05):
        return Figures.read(self.step(self.batch, tf.constant(rate), tf.constant(0.0)))

    def weights(self):
        return {variable.path: variable.numpy() for variable in self.model.trainable_variables}

    @property
    def losses(self):
        return [figures.loss for figures in self.figures]


def clips(views=None, seed=0):
    rng = np.random.default_rng(seed)
    shape = (BATCH, 4, 32, 32, 3) if views is None else (BATCH, views, 4, 32, 32, 3)
    frames = rng.integers(0, 256, shape, dtype=np.uint8)
    return {"frames": tf.constant(frames), "label": tf.constant([0, 1, 2, 1], tf.int32)}


@pytest.fixture(scope="module")
def frozen():
    """The measure of the others: float32, in one part, batch normalisation in inference mode."""
    return Trained(batch_norm="frozen")


@pytest.fixture(scope="module")
def plain():
    return Trained()


def close(one, other, tolerance=1e-5):
    assert one.losses == pytest.approx(other.losses, rel=tolerance)
    for path, value in one.weights().items():
        np.testing.assert_allclose(value, other.weights()[path], rtol=tolerance, atol=tolerance, err_msg=path)


def test_parts_one_after_another_make_the_same_step(frozen):
    """Where normalisation does not look at other clips; each part's statistics are its own otherwise."""
    close(Trained(batch_norm="frozen", accumulate=2), frozen)
    close(Trained(batch_norm="frozen", accumulate=4), frozen)


def test_parts_normalise_apart():
    """Two parts with the same clips have the statistics of both together."""
    batch = clips()
    twice = {name: tf.concat([value[:2], value[:2]], 0) for name, value in batch.items()}
    close(Trained(batch=twice, accumulate=2), Trained(batch=twice))


def test_xla_makes_the_same_step(frozen):
    """In two parts, which XLA compiles once."""
    close(Trained(xla=True, accumulate=2, batch_norm="frozen"), frozen, 2e-4)


@pytest.mark.parametrize(("precision", "band"), [("mixed_float16", 0.01), ("mixed_bfloat16", 0.05)])
def test_half_precision_stays_in_a_band_round_float32(plain, precision, band):
    """The stated band: 1 % of the loss for float16, 5 % for bfloat16."""
    half = Trained(precision=precision)
    assert half.losses == pytest.approx(plain.losses, rel=band)
    assert plain.losses[-1] < 0.95 * plain.losses[0]  # it learns, so the losses are no constants
    assert all(figures.updated for figures in half.figures)


def test_the_figures_of_a_step_are_those_of_its_clips():
    trained = Trained(steps=1, batch_norm="frozen", label_smoothing=0.1)
    model = build_model(config_of(), classes=CLASSES)
    model.set_weights(trained.before)
    logits = model(trained.batch["frames"], training=False)
    losses = cross_entropy(logits, trained.batch["label"], 0.1)
    (figures,) = trained.figures
    assert figures.loss == pytest.approx(float(tf.reduce_mean(losses)), rel=1e-5)
    assert figures.correct == np.sum(np.argmax(logits, -1) == trained.batch["label"].numpy())
    assert figures.stop == 0.0
    assert Figures.read(trained.step(trained.batch, tf.constant(0.0), tf.constant(1.0))).stop == 1.0


def test_blended_clips_have_blended_labels():
    batch = clips()
    plain = Trained(steps=1, batch=batch)
    close(Trained(steps=1, batch={**batch, "target": tf.one_hot(batch["label"], CLASSES)}), plain)
    others = tf.one_hot(tf.reverse(batch["label"], [0]), CLASSES)
    soft = Trained(steps=1, batch={**batch, "target": 0.5 * tf.one_hot(batch["label"], CLASSES) + 0.5 * others})
    moved = [np.abs(value - plain.weights()[path]).max() for path, value in soft.weights().items()]
    assert max(moved) > 1e-3


def test_twins_add_the_correlation_of_two_views():
    batch = clips(views=2)
    trained = Trained(steps=1, batch=batch, batch_norm="frozen", twins={"weight": 0.3, "beta": 0.2})
    model = build_model(config_of(), classes=CLASSES)
    model.set_weights(trained.before)
    first, second = (model(batch["frames"][:, number], training=False) for number in range(2))
    classified = [tf.reduce_mean(cross_entropy(logits, batch["label"])) for logits in (first, second)]
    wanted = 0.5 * sum(map(float, classified)) + 0.3 * float(twins(first, second, 0.2))
    assert trained.losses[0] == pytest.approx(wanted, rel=1e-5)
    alone = Trained(steps=1, batch=batch, batch_norm="frozen", twins={"weight": 0.0})
    moved = [np.abs(value - alone.weights()[path]).max() for path, value in trained.weights().items()]
    assert max(moved) > 1e-4  # the correlation has a gradient of its own


def test_a_step_without_a_finite_gradient_changes_nothing():
    trained = Trained(steps=2)
    before = [variable.numpy() for variable in trained.model.variables]
    kernel = trained.model.trainable_variables[0]
    value = kernel.numpy()
    kernel.assign(np.full_like(value, np.inf))
    assert not trained.go().updated
    kernel.assign(value)
    for variable, old in zip(trained.model.variables, before, strict=True):
        if "seed_generator" not in variable.path:
            np.testing.assert_array_equal(variable.numpy(), old, err_msg=variable.path)
    assert trained.go().updated


def test_a_batch_that_cannot_be_cut_in_parts_is_refused():
    config = config_of()
    train = config.train.model_copy(update={"accumulate": 3})
    with pytest.raises(ConfigError, match=r"4 clips for 1 device\(s\), accumulate=3"):
        make_step(tf.distribute.get_strategy(), None, None, train)
