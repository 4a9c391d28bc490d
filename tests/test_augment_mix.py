"""Mixup and CutMix of the clips of a batch: against plain NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from keras_stss.data.augment import Mix, mix_draw, mix_pairs

CROP = 16


def batch(count, *views):
    return np.random.default_rng(1).integers(0, 256, (count, *views, 2, CROP, CROP, 3), dtype=np.uint8)


def draws(mix, count, seed=0):
    """Shares (count,) and boxes (count, 4)."""
    each = [mix_draw(tf.constant([seed, n]), mix, CROP) for n in range(count)]
    return np.array([one["share"] for one in each]), np.array([one["box"] for one in each])


def many(mix, count):
    seeds = tf.stack([tf.fill([count], 5), tf.range(count)], 1)
    signature = {"share": tf.float32, "box": tf.int32}
    found = tf.function(lambda: tf.map_fn(lambda s: mix_draw(s, mix, 224), seeds, fn_output_signature=signature))()
    return found["share"].numpy(), found["box"].numpy()


def reference(frames, targets, share, box):
    """Rows 0 and 1, 2 and 3, …; an odd row out stays."""
    mixed, labels = frames.astype(float), targets.copy()
    for row in range(len(frames)):
        partner = row ^ 1
        if partner == len(frames):
            continue
        mixed[row] = share[row] * frames[row] + (1 - share[row]) * frames[partner].astype(float)
        top, left, bottom, right = box[row]
        mixed[row, ..., top:bottom, left:right, :] = frames[partner, ..., top:bottom, left:right, :]
        own = share[row] * (1 - (bottom - top) * (right - left) / CROP**2)
        labels[row] = own * targets[row] + (1 - own) * targets[partner]
    return mixed, labels


@pytest.mark.parametrize("mix", [Mix(mixup=0.8), Mix(cutmix=1.0), Mix(0.8, 1.0)], ids=str)
@pytest.mark.parametrize(("count", "views"), [(4, ()), (5, ()), (1, ()), (4, (2,))])
def test_against_numpy(mix, count, views):
    frames, targets = batch(count, *views), np.eye(7, dtype=np.float32)[np.arange(count) % 7]
    share, box = draws(mix, count)
    expected, labels = reference(frames, targets, share, box)
    found, weights = mix_pairs(tf.constant(frames), tf.constant(targets), share, box)
    assert found.dtype == tf.uint8 and abs(found.numpy() - expected).max() <= 0.51
    np.testing.assert_allclose(weights.numpy(), labels, atol=1e-6)
    np.testing.assert_allclose(weights.numpy().sum(1), 1, atol=1e-6)


def test_label_weights_are_the_shares_of_the_pixels():
    frames = np.stack([np.zeros((2, CROP, CROP, 3), np.uint8), np.full((2, CROP, CROP, 3), 200, np.uint8)])
    for seed in range(10):
        for mix in (Mix(mixup=1.0), Mix(cutmix=1.0)):
            mixed, weights = mix_pairs(tf.constant(frames), tf.eye(2), *draws(mix, 2, seed))
            assert mixed[0].numpy().mean() / 200 == pytest.approx(float(weights[0, 1]), abs=0.003)
            assert mixed[1].numpy().mean() / 200 == pytest.approx(float(weights[1, 1]), abs=0.003)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_follow_the_beta_distribution(alpha):
    share, box = many(Mix(mixup=alpha), 2000)
    assert not box.any()
    expected = np.quantile(np.random.default_rng(0).beta(alpha, alpha, 100_000), np.linspace(0.1, 0.9, 9))
    assert abs(np.quantile(share, np.linspace(0.1, 0.9, 9)) - expected).max() < 0.06


def test_boxes_of_cutmix():
    """Square, with an area of 1 - λ (uniform for α = 1) where no edge cuts them off, around uniform centres."""
    share, box = many(Mix(cutmix=1.0), 2000)
    assert (share == 1).all() and box.min() == 0 and box.max() == 224
    size = box[:, 2:] - box[:, :2]
    whole = ((box > 0) & (box < 224)).all(1)
    assert 0.05 < whole.mean() < 0.6 and abs(size[whole, 0] - size[whole, 1]).max() <= 1
    small = (size[whole].prod(1) / 224**2) < 0.05
    assert 0.1 < small.mean() < 0.6
    centers = (box[whole, :2] + box[whole, 2:]) / 2
    assert abs(centers.mean(0) - 112).max() < 8


def test_one_of_both():
    share, box = many(Mix(0.8, 1.0), 600)
    has_box = box.any(1)
    assert 240 < has_box.sum() < 360
    assert (share[has_box] == 1).all() and (share[~has_box] < 1).all()


def test_parts_of_even_size_mix_as_the_whole():
    frames, targets = batch(6), np.eye(6, dtype=np.float32)
    share, box = draws(Mix(0.8, 1.0), 6)
    whole, labels = mix_pairs(tf.constant(frames), tf.constant(targets), share, box)
    for part in (slice(0, 2), slice(2, 6)):
        found, weights = mix_pairs(tf.constant(frames[part]), tf.constant(targets[part]), share[part], box[part])
        assert (found == whole[part]).numpy().all() and (weights == labels[part]).numpy().all()


@pytest.mark.parametrize("values", [{}, {"mixup": -0.1, "cutmix": 1.0}])
def test_refusals(values):
    with pytest.raises(ValueError, match=r"one of them above 0\. Received: mixup"):
        Mix(**values)
