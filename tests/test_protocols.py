"""Protocols by name: clips, crops and sizes as the papers say, and scores averaged as they say."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from streams import config, write_clips

from keras_stss.config import ConfigError, DataConfig
from keras_stss.data.pipeline import evaluation_stream
from keras_stss.data.sample import clip_indices
from keras_stss.evaluation.evaluate import Scorer
from keras_stss.evaluation.metrics import mean_scores, softmax
from keras_stss.evaluation.protocols import PROTOCOLS, find_protocol


def indices(name, n, frames, sampling="segment"):
    views = PROTOCOLS[name].views
    generator = np.random.default_rng(0) if views.random else None
    return clip_indices(n, frames, sampling, views.clips, generator).tolist()


def test_the_frames_of_each_protocol():
    """Of 80 frames and 8 segments of 10."""
    middle = [5, 15, 25, 35, 45, 55, 65, 75]
    assert indices("1x1", 80, 8) == [middle]
    assert indices("2x1", 80, 8) == [middle, [0, 10, 20, 30, 40, 50, 60, 70]]  # TSM's second clip
    ten = indices("10x1", 80, 8)
    assert sorted(clip[0] for clip in ten) == list(range(10)) and ten[0] == middle  # each place of a segment once
    assert all(np.diff(clip).tolist() == [10] * 7 for clip in ten)
    drawn = indices("10x3", 80, 8)
    assert len(drawn) == 10 and (np.asarray(drawn) // 10 == np.arange(8)).all() and len({*map(tuple, drawn)}) == 10
    dense = indices("10x1", 154, 8, "dense")  # every eighth frame of 64, from ten starts 10 frames apart
    assert [clip[0] for clip in dense] == list(range(0, 100, 10))
    assert all(np.diff(clip).tolist() == [8] * 7 for clip in dense)


def test_sizes_of_each_protocol():
    data = DataConfig(format="clips", root=".", annotations="clips.csv")
    sizes = {name: (made := protocol.data(data)) and (made.resize, made.crop) for name, protocol in PROTOCOLS.items()}
    as_trained, wide, full = ((240, 320), 224), (256, 224), (256, 256)
    assert {name for name, size in sizes.items() if size == wide} == {"10x3"}
    assert {name for name, size in sizes.items() if size == full} == {"1x1-full", "2x3-full", "10x3-full"}
    assert {*sizes.values()} == {as_trained, wide, full}
    assert PROTOCOLS["1x1"].data(data) is data
    views = {name: protocol.views.views for name, protocol in PROTOCOLS.items()}
    assert [views[name] for name in ("1x1", "2x1", "10x1", "10x3", "2x3-full", "1x10")] == [1, 2, 10, 30, 6, 10]


def test_ten_crops_are_refused_where_labels_name_a_side():
    labels = ["Waving", "Turning left", "Pushing something from left to right"]
    with pytest.raises(ConfigError, match="2 of 3 labels name a side or a turn \\('Turning left', 'Pushing"):
        PROTOCOLS["1x10"].check(labels)
    PROTOCOLS["1x10"].check(labels[:1])
    for name in PROTOCOLS.keys() - {"1x10"}:
        PROTOCOLS[name].check(labels)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"no protocol '3x3'(.|\n)*10x3 +ten random clips, three crops of 256"):
        find_protocol("3x3")


def test_means_of_scores_by_hand():
    """Of probabilities 0.8 and 0.4 the mean is 0.6; of logits log 4 and log 2/3 it is half the logarithm of 8/3."""
    logits = np.log([[[0.8, 0.2], [0.4, 0.6]]])
    np.testing.assert_allclose(softmax(mean_scores(logits, "softmax", 1)), [[0.6, 0.4]])
    ratio = np.sqrt(8 / 3)
    np.testing.assert_allclose(softmax(mean_scores(logits, "logits", 1)), [[ratio / (1 + ratio), 1 / (1 + ratio)]])
    assert np.isfinite(mean_scores([[[900.0, 0.0], [800.0, -900.0]]], "softmax", 1)).all()
    with pytest.raises(ValueError, match="Received: average='mean'"):
        mean_scores(logits, "mean", 1)


# --- scores of several views ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("set"))


class Colours:
    """Logits that bend with place and colour, so that views differ; notes how many clips it saw at a time."""

    def __init__(self):
        self.seen = []

    def __call__(self, frames, training):
        frames = tf.ensure_shape(tf.numpy_function(self._note, [frames], tf.uint8), frames.shape)
        means = tf.reduce_mean(tf.cast(frames, tf.float32) / 64, axis=(1, 2, 3))
        return means**2 - 3.0

    def _note(self, frames):
        self.seen.append(len(frames))
        return frames


def by_hand(clips, data, protocol):
    """Mean prediction of each clip, its views one by one."""
    (batch,) = evaluation_stream(clips, protocol.data(data), len(clips), protocol=protocol.views).take(1)
    logits = ((batch["frames"].numpy().astype("float64") / 64).mean((2, 3, 4))) ** 2 - 3
    assert logits.shape == (len(clips), protocol.views.views, 3)
    assert logits.std(axis=1).max() > 0.01
    return softmax(logits.mean(1)) if protocol.average == "logits" else softmax(logits).mean(1)


@pytest.mark.parametrize(
    ("name", "batch_size", "together"),
    [("2x1", 3, 2), ("10x1", 1, 1), ("10x1", 7, 5), ("10x1", 64, 60), ("10x3", 16, 15), ("2x3-full", 13, 12)],
)
def test_each_clip_gets_the_mean_of_its_views(clips, name, batch_size, together):
    """No more views at a time than the batch size says, and all clips once."""
    data, model, protocol = config(), Colours(), PROTOCOLS[name]
    index, logits, reasons = Scorer(model).score(clips, data, batch_size, protocol=protocol)
    assert index.tolist() == list(range(7)) and reasons == {} and logits.dtype == np.float32
    np.testing.assert_allclose(softmax(logits), by_hand(clips, data, protocol), rtol=1e-4)
    assert set(model.seen) == {together} and together <= max(batch_size, 1)


def test_one_scorer_takes_protocols_of_all_sizes(clips):
    """Views of 24 pixels, then of 27: a graph that was traced anew for any size still knows how to cut them."""
    scorer, data = Scorer(Colours()), config()
    for name in ("10x3", "2x3-full", "10x1"):
        _, logits, _ = scorer.score(clips, data, 7, protocol=PROTOCOLS[name])
        np.testing.assert_allclose(softmax(logits), by_hand(clips, data, PROTOCOLS[name]), rtol=1e-4)


@pytest.mark.parametrize("name", ["1x1", "10x1"])
def test_what_is_changed_is_what_the_model_sees(clips, name):
    protocol, data, given = PROTOCOLS[name], config(), {}

    def darken(frames, index):
        given[index] = frames.copy()
        return frames // 2

    views = protocol.views.views
    _, logits, _ = Scorer(Colours()).score(clips, data, 20, protocol=protocol, change=darken)
    (batch,) = evaluation_stream(clips, data, 7, protocol=protocol.views).take(1)
    frames = batch["frames"].numpy().reshape(7, views, 4, 24, 24, 3)
    assert sorted(given) == list(range(7)) and all((given[number] == frames[number]).all() for number in given)
    expected = ((frames // 2).astype("float64") / 64).mean((2, 3, 4)) ** 2 - 3
    np.testing.assert_allclose(softmax(logits), softmax(expected).mean(1), rtol=1e-4)


def test_a_keras_model_of_any_size_sees_full_resolution(clips):
    frames = keras.Input((None, None, None, 3), dtype="uint8")
    model = keras.Model(frames, ops.mean(ops.cast(frames, "float32"), axis=(1, 2, 3)) / 40)
    protocol = PROTOCOLS["1x1-full"]
    assert protocol.data(config()).crop == 27
    _, logits, _ = Scorer(model).score(clips, config(), 3, protocol=protocol)
    (batch,) = evaluation_stream(clips, protocol.data(config()), 7).take(1)
    assert batch["frames"].shape == (7, 4, 27, 27, 3)
    np.testing.assert_allclose(logits, model(batch["frames"]), rtol=1e-5)
