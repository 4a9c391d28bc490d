"""Displacements as colours: directions that one can name, lengths, and the wheel that explains them."""

import numpy as np
import pytest

from keras_stss.evaluation.colors import WHEEL, displacement_colors, wheel


def test_directions_have_the_colours_of_the_customary_wheel():
    """Right is red, down yellow, left light blue, up violet; worked out by hand from the wheel's 55 steps."""
    ways = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)], "float64")
    # A quarter of the wheel is 13.75 steps: 13.75 of the 15 from red to yellow; 27.5 is 2.5 of the 11 from cyan to
    # blue; 41.25 is 5.25 of the 13 from blue to magenta.
    expected = [(255, 0, 0), (255, 255 * 13.75 / 15, 0), (0, 255 * (1 - 2.5 / 11), 255), (255 * 5.25 / 13, 0, 255)]
    np.testing.assert_allclose(displacement_colors(3 * ways, 3.0), expected, atol=0.51)
    assert sum(steps for _, steps in WHEEL) == 55


def test_length_is_saturation_and_more_is_dark():
    lengths = np.array([0.0, 0.5, 1.0, 2.0])
    found = displacement_colors(np.stack([lengths, 0 * lengths], -1), 1.0)
    np.testing.assert_array_equal(found, [(255, 255, 255), (255, 128, 128), (255, 0, 0), (191, 0, 0)])


def test_neighbouring_directions_have_neighbouring_colours():
    """Also across the place where the angle starts again."""
    angles = np.linspace(0, 2 * np.pi, 721)
    found = displacement_colors(np.stack([np.cos(angles), np.sin(angles)], -1), 1.0).astype(int)
    assert np.abs(np.diff(found, axis=0)).max() <= 10


def test_shapes_and_what_is_no_number():
    displacement = np.zeros((2, 3, 4, 2), "float16")
    displacement[0, 0, 0] = np.nan
    found = displacement_colors(displacement, 2)
    assert found.shape == (2, 3, 4, 3) and found.dtype == np.uint8
    assert tuple(found[0, 0, 0]) == (128, 128, 128) and (found[1] == 255).all()
    with pytest.raises(ValueError, match="Received: largest=0"):
        displacement_colors(displacement, 0)


def test_the_wheel_shows_each_colour_where_it_points():
    key = wheel(101)
    np.testing.assert_array_equal(key[50, 100], (255, 0, 0))
    np.testing.assert_array_equal(key[50, 50], (255, 255, 255))
    np.testing.assert_array_equal(key[75, 50], displacement_colors(np.array((0, 0.5)), 1.0))
    np.testing.assert_array_equal(key[0, 0], (255, 255, 255))
