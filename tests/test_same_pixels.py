"""Short cuts of the data code give what the plain way gives, to the bit."""

import random

import numpy as np
import pytest
import tensorflow as tf

from keras_stss.data import pictures
from keras_stss.data.annotations import natural_key
from keras_stss.data.augment import views


@pytest.mark.parametrize("size", [(240, 240), (240, 210), (90, 300), (225, 225)])
def test_shrinking_with_the_frames_side_by_side(size):
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype="uint8")
    plain = tf.saturate_cast(tf.round(tf.image.resize(frames, [56, 56], antialias=True)), tf.uint8)
    np.testing.assert_array_equal(views.fit(tf.constant(frames), 56), plain)


@pytest.mark.parametrize("size", [(64, 64), (64, 40), (30, 63)])
def test_shrinking_a_little(size):
    """To 7/8 no antialias: hardly another picture; each of its pixels counts."""
    rows, columns = np.mgrid[:128, :128] / 128
    waves = 127 + 60 * np.sin(40 * rows) + 60 * np.cos(55 * columns * rows)  # of 15 pixels and more
    frames = np.repeat(waves[None, : size[0], : size[1], None], 3, -1).astype("uint8")
    found = views.fit(tf.constant(frames), 56).numpy().astype(float)
    antialiased = tf.image.resize(frames, [56, 56], antialias=True).numpy()
    assert np.abs(found - antialiased).mean() < 1 < np.abs(found).mean()
    ones = np.zeros((size[0], *size, 3), "uint8")
    ones[np.arange(size[0]), np.arange(size[0])] = 255  # each frame has one row
    assert (views.fit(tf.constant(ones), 56).numpy().max((1, 2, 3)) > 100).all()


def test_shrinking_more_is_antialiased():
    frames = np.random.default_rng(0).integers(0, 256, (2, 65, 56, 3), dtype="uint8")
    plain = tf.cast(tf.round(tf.image.resize(frames, [56, 56], antialias=True)), tf.uint8)
    np.testing.assert_array_equal(views.fit(tf.constant(frames), 56), plain)


def test_the_mirror_image():
    view = np.random.default_rng(1).integers(0, 256, (4, 9, 7, 3), dtype="uint8")
    np.testing.assert_array_equal(views._reversed_rows(tf.constant(view)), view[:, :, ::-1])


@pytest.mark.parametrize("shape", [(5, 300, 3), (300, 5, 3), (64, 48, 1)])
@pytest.mark.parametrize("format", ["", "progressive"])
def test_size_from_a_jpeg_header(shape, format):
    kind = "grayscale" if shape[2] == 1 else "rgb"
    options = {"progressive": bool(format), "xmp_metadata": "some words" * 30}
    content = tf.io.encode_jpeg(np.zeros(shape, "uint8"), kind, **options).numpy()
    assert pictures._jpeg_size(content) == shape[:2]
    for length in range(0, len(content), 7):  # cut short: no answer, or the right one
        assert pictures._jpeg_size(content[:length]) in (None, shape[:2])


def test_order_of_frames():
    draw = random.Random(0)
    shapes = ["{:05d}.jpg", "{}.jpg", "img_{:04d}.png", "f{}.{}.jpg", "0{}.jpeg", "{:03d}.png"]
    for _ in range(3000):
        usual = draw.choice(shapes)
        shape = [usual if draw.random() < 0.9 else draw.choice(shapes) for _ in range(draw.randint(1, 12))]
        names = list({each.format(draw.randrange(120), draw.randrange(12)) for each in shape})
        assert pictures._in_order(list(names)) == sorted(names, key=natural_key)
