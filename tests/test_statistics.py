"""Figures, intervals, paired tests, confusion and calibration against hand-made cases, scikit-learn and SciPy."""

import math

import numpy as np
import pytest

from keras_stss.evaluation.confusion import calibration, class_table, confusion_matrix, most_confused
from keras_stss.evaluation.metrics import softmax, summarize
from keras_stss.evaluation.mistakes import surest_mistakes
from keras_stss.evaluation.statistics import bootstrap_interval, class_interval, compare


def scores_of(said, classes):
    """Logits whose highest is the class said."""
    return np.eye(classes)[np.asarray(said)] * 5.0


def test_a_bootstrap_interval_is_that_of_the_binomial():
    right = np.repeat([1, 0], [70, 30])
    low, high = bootstrap_interval(right, draws=4000)
    spread = math.sqrt(0.7 * 0.3 / 100)
    assert low == pytest.approx(0.7 - 1.96 * spread, abs=0.015)
    assert high == pytest.approx(0.7 + 1.96 * spread, abs=0.015)
    assert bootstrap_interval(right) == bootstrap_interval(right)
    assert bootstrap_interval(np.ones(9)) == (1.0, 1.0)


def test_the_interval_of_mean_class_accuracy_weighs_classes_alike():
    """One class of 400 clips that are all right, one of 4 of which half are: the small one makes the spread."""
    right = np.repeat([1, 1, 0], [400, 2, 2])
    labels = np.repeat([0, 1], [400, 4])
    low, high = class_interval(right, labels)
    assert low <= 0.625 and high >= 0.875  # means of four coins, halved
    assert bootstrap_interval(right)[0] > 0.98


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [(1, 0, 1.0), (5, 0, 2 / 32), (8, 2, 2 * (1 + 10 + 45) / 1024), (4, 4, 1.0), (0, 0, 1.0)],
)
def test_the_paired_test_is_the_exact_mcnemar_test(first, second, wanted):
    right = np.repeat([1, 0, 1, 0], [first, second, 10, 10])
    other = np.repeat([0, 1, 1, 0], [first, second, 10, 10])
    found = compare(right, other)
    assert found["p_value"] == pytest.approx(wanted)
    assert (found["only_first"], found["only_second"]) == (first, second)
    assert found["difference"] == pytest.approx((first - second) / len(right))
    assert found["low"] <= found["difference"] <= found["high"]
    turned = compare(other, right)
    assert turned["p_value"] == found["p_value"] and turned["difference"] == pytest.approx(-found["difference"])


def test_models_on_other_clips_are_not_compared():
    with pytest.raises(ValueError, match="same clips"):
        compare(np.ones(3), np.ones(4))


def test_confusion_of_a_small_case():
    truth = np.array([0, 0, 0, 1, 1, 3])
    counts = confusion_matrix(scores_of([0, 1, 1, 1, 0, 1], 4), truth, 4)
    assert counts.tolist() == [[1, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert most_confused(counts) == [(0, 1, 2, 1), (1, 3, 0, 1)]
    assert most_confused(counts, 1) == [(0, 1, 2, 1)]
    rows = class_table(counts)
    assert [row["class"] for row in rows] == [0, 1, 3]  # class 2 has no clip and was never said
    assert rows[0] == {
        "class": 0, "clips": 3, "right": 1, "accuracy": 1 / 3, "precision": 1 / 2, "taken_for": 1, "taken_for_clips": 2,
    }  # fmt: skip
    assert rows[2]["accuracy"] == 0.0 and rows[2]["precision"] is None and rows[2]["taken_for"] == 1


def test_a_tie_is_a_mistake_in_every_figure():
    truth, logits = np.array([0, 1, 2]), np.array([[1.0, 1, 0], [0, 1, 1], [0, 0, 1]])
    counts = confusion_matrix(logits, truth, 3)
    assert counts.tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 1]]
    figures, bins = summarize(logits, truth, 3), calibration(logits, truth)["bins"]
    right = sum(row["clips"] * row["accuracy"] for row in bins) / 3
    assert figures["top1"] == figures["mean_class"] == counts.trace() / 3 == pytest.approx(1 / 3)
    assert right == pytest.approx(1 / 3)


@pytest.mark.parametrize(("clips", "classes"), [(1, 5), (40, 3), (500, 60)])
def test_figures_are_those_of_scikit_learn(clips, classes):
    """Random scores, a class without clips where there are many; McNemar's p is SciPy's."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    from scipy.stats import binomtest

    rng, names = np.random.default_rng(clips), list(range(classes))
    truth = rng.integers(classes - (clips > classes), size=clips)
    logits = rng.normal(size=(clips, classes)) + np.eye(classes)[truth]
    likely, said = softmax(logits), np.argmax(logits, 1)
    figures = summarize(logits, truth, classes)
    assert figures["top1"] == pytest.approx(metrics.accuracy_score(truth, said))
    assert figures["loss"] == pytest.approx(metrics.log_loss(truth, likely, labels=names))
    if classes > 5:
        assert figures["top5"] == pytest.approx(metrics.top_k_accuracy_score(truth, likely, k=5, labels=names))
    recall, precision = (
        function(truth, said, labels=names, average=None, zero_division=np.nan)
        for function in (metrics.recall_score, metrics.precision_score)
    )
    assert figures["mean_class"] == pytest.approx(np.nanmean(recall))
    counts = confusion_matrix(logits, truth, classes)
    assert (counts == metrics.confusion_matrix(truth, said, labels=names)).all()
    for row in class_table(counts):
        for name, values in (("accuracy", recall), ("precision", precision)):
            found = row[name] if row[name] is not None else np.nan
            assert found == pytest.approx(values[row["class"]], nan_ok=True)
    right, other = said == truth, rng.random(clips) < 0.4
    found = compare(right, other)
    counted = found["only_first"], found["only_first"] + found["only_second"]
    assert not counted[1] or found["p_value"] == pytest.approx(binomtest(*counted).pvalue)


def test_calibration_by_hand():
    """Three clips at 0.9, of which two are right, and one at 0.6 that is wrong."""
    sure = np.array([0.9, 0.9, 0.9, 0.6])
    logits = np.log(np.stack([sure, 1 - sure], axis=1))
    found = calibration(logits, np.array([0, 0, 1, 1]), bins=10)
    assert [(row["clips"], round(row["accuracy"], 3)) for row in found["bins"]] == [(1, 0.0), (3, 0.667)]
    assert found["ece"] == pytest.approx((1 * 0.6 + 3 * (0.9 - 2 / 3)) / 4)


def test_a_perfectly_honest_model_has_no_calibration_error():
    logits = np.log(np.tile([0.75, 0.25], (400, 1)))
    assert calibration(logits, np.repeat([0, 1], [300, 100]))["ece"] == pytest.approx(0.0, abs=1e-12)


def test_mistakes_come_surest_first_and_say_what_was_said():
    logits = np.array([[3.0, 0, 0], [0, 9, 0], [0, 2, 0], [0, 0, 1]])
    scores = {"index": np.array([4, 5, 6, 7]), "label": np.array([1, 0, 1, 0]), "logits": logits}
    found = surest_mistakes(scores, ["left", "right", "up"])
    assert [index for index, _ in found] == [5, 4, 7]
    assert found[0][1] == "left — taken for right (100%)"
    assert found[2][1].startswith("left — taken for up (5")
