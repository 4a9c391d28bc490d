"""Figures against hand-made cases, and every clip scored once."""

import math
import shutil

import keras
import numpy as np
import pytest
from keras import ops

from keras_stss.config import parse_config
from keras_stss.data.annotations import Clip, DataError, read_annotations
from keras_stss.data.pipeline import read_clip
from keras_stss.evaluation.evaluate import Scorer, evaluate
from keras_stss.evaluation.metrics import class_accuracies, cross_entropy, softmax, summarize, top_k_accuracy
from keras_stss.evaluation.predict import predict

LABELS = ["blue square", "green square", "red square"]

# --- figures ----------------------------------------------------------------------------------------------------------


def test_figures_of_a_small_case():
    logits = np.array([[4.0, 1, 0], [1, 2, 3], [0, 5, 1], [3, 2, 1]])
    labels = np.array([0, 1, 1, 2])
    figures = summarize(logits, labels, 3)
    assert figures["top1"] == 0.5  # the first and the third
    assert figures["top5"] == 1.0
    assert figures["mean_class"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    by_hand = [-math.log(math.exp(row[label]) / sum(map(math.exp, row))) for row, label in zip(logits.tolist(), labels)]
    assert figures["loss"] == pytest.approx(sum(by_hand) / 4)
    assert top_k_accuracy(logits, labels, 2) == 0.75


def test_top_five_of_seven():
    logits = np.tile(np.arange(7.0), (7, 1))  # class 6 highest
    labels = np.arange(7)
    assert summarize(logits, labels, 7)["top5"] == pytest.approx(5 / 7)
    assert summarize(logits, labels, 7)["top1"] == pytest.approx(1 / 7)


def test_ties_count_against_the_label():
    same = np.zeros((3, 4))
    assert top_k_accuracy(same, np.array([0, 1, 3]), 1) == 0.0
    assert top_k_accuracy(same, np.array([0, 1, 3]), 3) == 0.0
    assert top_k_accuracy(same, np.array([0, 1, 3]), 4) == 1.0
    assert top_k_accuracy(np.array([[2.0, 2.0, 1.0]]), np.array([1]), 2) == 1.0
    assert top_k_accuracy(np.array([[2.0, 2.0, 1.0]]), np.array([0]), 1) == 0.0


def test_a_model_that_gives_no_numbers_is_never_right():
    nothing = np.full((4, 3), np.nan)
    figures = summarize(nothing, np.array([0, 0, 1, 2]), 3)
    assert figures["top1"] == figures["mean_class"] == 0.0
    partly = np.array([[np.nan, 1.0, 0.0], [0.0, np.nan, 5.0]])
    assert top_k_accuracy(partly, np.array([0, 2]), 1) == 0.0


def test_absent_classes_are_left_out_of_the_mean():
    logits = np.eye(5)[[0, 0, 3, 3]]
    labels = np.array([0, 0, 3, 0])
    assert class_accuracies(logits, labels, 5) == [pytest.approx(2 / 3), None, None, 1.0, None]
    assert summarize(logits, labels, 5)["mean_class"] == pytest.approx((2 / 3 + 1) / 2)


def test_large_logits_do_not_overflow():
    logits = np.array([[1000.0, 0.0], [-1000.0, 1000.0]], np.float32)
    np.testing.assert_allclose(softmax(logits), [[1, 0], [0, 1]])
    assert cross_entropy(logits, np.array([0, 1])) == 0.0
    assert cross_entropy(logits, np.array([1, 0])) == 1500.0
    np.testing.assert_allclose(softmax(np.zeros((2, 4))), 0.25)


# --- clips ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    """Mean colours as logits, with a batch-independent layer in between: little, but it tells clips apart."""
    frames = keras.Input((None, None, None, 3), dtype="uint8")
    x = ops.mean(ops.cast(frames, "float32"), axis=(1, 2, 3))[..., ::-1] / 40
    return keras.Model(frames, x)


def config_of(root, **changes):
    values = {"format": "clips", "root": str(root), "annotations": "clips.csv", "frames": 4, "workers": 2}
    return parse_config({"data": {**values, "resize": [32, 40], "crop": 32, **changes}}).data


@pytest.fixture(scope="module")
def scorer(model):
    return Scorer(model)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16])
def test_every_clip_is_scored_once(clip_set, model, scorer, batch_size):
    data = config_of(clip_set)
    clips = read_annotations(data).validation
    seen = []
    index, logits, reasons = scorer.score(clips, data, batch_size, seen.append)
    assert sorted(index) == list(range(7))
    assert reasons == {}
    assert seen[-1] == 7
    for number, scores in zip(index, logits, strict=True):
        alone = model(read_clip(clips[number].path, "video", data)[None])
        np.testing.assert_allclose(scores, ops.convert_to_numpy(alone)[0], rtol=1e-5)


def test_figures_do_not_depend_on_the_batch_size(clip_set, scorer):
    data = config_of(clip_set)
    clips = read_annotations(data).validation
    expected, _ = evaluate(scorer, clips, LABELS, data, 1)
    assert expected["clips"] == 7
    assert expected["top1"] > 1 / 3  # colour is what the model looks at
    for batch_size in (2, 5, 8):
        figures, _ = evaluate(scorer, clips, LABELS, data, batch_size)
        assert figures.pop("unreadable") == {}
        assert figures == pytest.approx({key: expected[key] for key in figures}, rel=1e-6)


def test_unreadable_clips_are_reported_by_path(clip_set, scorer, tmp_path):
    root = shutil.copytree(clip_set, tmp_path / "set")
    (root / "19.mp4").write_bytes(b"")
    (root / "22.mp4").unlink()
    data = config_of(root, max_unreadable=0.5)
    clips = read_annotations(data).validation
    figures, scores = evaluate(scorer, clips, LABELS, data, 4)
    assert figures["unreadable"] == {
        str(root / "19.mp4"): "empty file (zero bytes)",
        str(root / "22.mp4"): "no such file",
    }
    assert figures["clips"] == 5
    assert sorted(scores["index"]) == [0, 2, 3, 5, 6]
    assert scores["label"].tolist() == [clips[i].label for i in scores["index"]]
    readable = [clip for clip in clips if clip.path not in figures["unreadable"]]
    alone, _ = evaluate(scorer, readable, LABELS, data, 4)
    for key in ("top1", "top5", "mean_class", "loss"):
        assert figures[key] == pytest.approx(alone[key])


def test_too_many_unreadable_clips_are_an_error(clip_set, scorer):
    data = config_of(clip_set)
    missing = [Clip(str(n), str(clip_set / f"none{n}.mp4"), 0, "video") for n in range(3)]
    whole = read_annotations(data).validation
    with pytest.raises(DataError, match=r"[23] of 10 clips cannot be read"):
        scorer.score([*missing, *whole], data, 4)
    with pytest.raises(DataError, match="3 of 3 clips cannot be read"):
        scorer.score(missing, config_of(clip_set, max_unreadable=1.0), 4)


def test_a_prediction_is_the_ranking_of_the_same_view(clip_set, model):
    data = config_of(clip_set)
    path = clip_set / "2.mp4"  # red
    ranking = predict(model, LABELS, data, path)
    logits = ops.convert_to_numpy(model(read_clip(str(path), "video", data)[None]))
    expected = softmax(logits)[0]
    assert [label for label, _ in ranking] == [LABELS[i] for i in np.argsort(-expected)]
    assert sum(share for _, share in ranking) == pytest.approx(1.0)
    assert ranking[0] == ("red square", pytest.approx(expected.max()))
