"""Where a view is cut: against the formulas of the TSN/TSM line of code, restated here as plain Python."""

import math

import numpy as np
import pytest
import tensorflow as tf

from keras_stss.data.augment import center_view, crop_views
from keras_stss.data.augment.windows import (
    area_box,
    corner_window,
    mirror_draw,
    random_resized_window,
    random_scale_window,
)

SCALES = (1.0, 0.875, 0.75, 0.66)


def drawn(window, count):
    """Windows of many seeds: int array (count, 4) of top, left, height and width."""
    seeds = tf.stack([tf.fill([count], 11), tf.range(count)], 1)
    return tf.function(lambda: tf.map_fn(window, seeds, fn_output_signature=tf.int32))().numpy()


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class TestCorners:
    """``GroupMultiScaleCrop`` in ops/transforms.py of mit-han-lab/temporal-shift-module."""

    def theirs(self, height, width, crop):
        """All (top, left, height, width), as often as the random choices lead there."""
        sides = [int(min(height, width) * scale) for scale in SCALES]
        sides = [crop if abs(side - crop) < 3 else side for side in sides]
        boxes = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
        found = []
        for h, w in boxes:
            down, right = (height - h) // 4, (width - w) // 4
            corners = [(0, 0), (0, 4 * right), (4 * down, 0), (4 * down, 4 * right), (2 * down, 2 * right)]
            sides_middle = [(2 * down, 0), (2 * down, 4 * right), (4 * down, 2 * right), (0, 2 * right)]
            quarters = [(down, right), (down, 3 * right), (3 * down, right), (3 * down, 3 * right)]
            found += [(top, left, h, w) for top, left in corners + sides_middle + quarters]
        return found

    @pytest.mark.parametrize("size", [(240, 320), (255, 340), (340, 256)])
    def test_all_boxes_and_places_are_drawn_evenly(self, size):
        windows = drawn(lambda seed: corner_window(tf.constant(size), seed, size, 224, SCALES), 4000)
        expected = self.theirs(*size, 224)
        assert {tuple(window) for window in windows.tolist()} == set(expected)
        for place in set(expected):
            share = expected.count(place) / len(expected)
            count = (windows == place).all(1).sum()
            assert abs(count - 4000 * share) < 5 * math.sqrt(4000 * share)

    def test_in_the_pixels_of_a_larger_frame(self):
        twice = drawn(lambda seed: corner_window(tf.constant([480, 640]), seed, (240, 320), 224, SCALES), 50)
        once = drawn(lambda seed: corner_window(tf.constant([240, 320]), seed, (240, 320), 224, SCALES), 50)
        assert (twice == 2 * once).all()


class TestRandomScale:
    def test_short_sides_and_places(self):
        """A square of 224 in a frame whose short side is any of 256 to 320, mapped back to the frame's 240 rows."""
        windows = drawn(lambda seed: random_scale_window(tf.constant([240, 320]), seed, 240, 224, (256, 320)), 1500)
        assert set(windows[:, 2]) == {round(224 * 240 / side) for side in range(256, 321)}
        assert (abs(windows[:, 2] - windows[:, 3]) <= 1).all()
        assert windows[:, :2].min() == 0
        ends = windows[:, :2] + windows[:, 2:]
        assert ends[:, 0].max() == 240 and ends[:, 1].max() == 320

    def test_keeps_the_aspect_ratio_of_resize(self):
        windows = drawn(
            lambda seed: random_scale_window(tf.constant([240, 640]), seed, (240, 320), 224, (240, 240)), 40
        )
        assert (windows[:, 2:] == [224, 448]).all()


class TestRandomArea:
    """``RandomResizedCrop`` as torchvision has it."""

    def theirs(self, size, seed, area):
        height, width = size
        draws = tf.random.stateless_uniform([10, 4], seed).numpy().astype(float)
        for share, ratio, down, right in draws:
            pixels = height * width * (area[0] + share * (area[1] - area[0]))
            aspect = math.exp(math.log(3 / 4) + ratio * (math.log(4 / 3) - math.log(3 / 4)))
            w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
            if 0 < w <= width and 0 < h <= height:
                return [h, w], [int(down * (height - h + 1)), int(right * (width - w + 1))], True
        if width / height < 3 / 4:
            h, w = round(width / (3 / 4)), width
        elif width / height > 4 / 3:
            h, w = height, round(height * 4 / 3)
        else:
            h, w = height, width
        return [h, w], [(height - h) // 2, (width - w) // 2], False

    @pytest.mark.parametrize("size", [(240, 320), (320, 240), (40, 500), (500, 40), (3, 300)])
    @pytest.mark.parametrize("area", [(0.08, 1.0), (0.9, 1.0)])
    def test_boxes(self, size, area):
        for number in range(25):
            box, offset, found = area_box(tf.constant(size), [7, number], area, (3 / 4, 4 / 3))
            expected = self.theirs(size, [7, number], area)
            assert (box.numpy().tolist(), offset.numpy().tolist(), bool(found)) == expected

    def test_place_and_mirror_are_independent(self):
        """Draws that overlapped would mirror the left half of all windows only."""
        windows = drawn(lambda seed: random_resized_window(tf.constant([240, 320]), seed, 240, (0.1, 0.2)), 600)
        mirrored = np.array([float(mirror_draw([11, number])) < 0.5 for number in range(600)])
        centers = windows[:, 1] + windows[:, 3] / 2
        assert 250 < mirrored.sum() < 350
        assert abs(centers[mirrored].mean() - centers[~mirrored].mean()) < 20


class TestTestingCrops:
    """``GroupFullResSample`` and ``GroupOverSample`` in the same file: offsets in quarters of the room."""

    def test_one_is_the_centre_view(self):
        frames = noise(2, 40, 60, 3)
        views = crop_views(frames, (40, 60), 32, 1)
        assert views.shape == (1, 2, 32, 32, 3) and (views[0] == center_view(frames, (40, 60), 32)).numpy().all()

    @pytest.mark.parametrize("width", [32, 47, 64, 81])
    def test_three_at_full_resolution(self, width):
        frames = noise(2, 32, width, 3)
        step = (width - 32) // 4
        expected = [frames[:, :, left : left + 32] for left in (0, 2 * step, 4 * step)]
        assert (crop_views(frames, 32, 32, 3).numpy() == expected).all()
        # A tall frame: along its longer side, too.
        tall = crop_views(frames.transpose(0, 2, 1, 3), 32, 32, 3).numpy()
        assert (tall.transpose(0, 1, 3, 2, 4) == expected).all()

    def test_three_cover_the_short_side_whatever_the_crop(self):
        """256 x 256 of a frame with the short side 256, scaled to 224, as STM tests."""
        rows = np.round(np.linspace(0, 255, 64)).astype(np.uint8)
        frames = np.broadcast_to(rows[None, :, None, None], (1, 64, 96, 3))
        views = crop_views(np.array(frames), 64, 32, 3).numpy().astype(int)
        assert views.shape == (3, 1, 32, 32, 3)
        assert views[..., 0, :, :].max() <= 8 and views[..., -1, :, :].min() >= 247

    @pytest.mark.parametrize("size", [(40, 60), (33, 47), (60, 40)])
    def test_five_and_ten(self, size):
        frames = noise(2, *size, 3)
        down, right = (size[0] - 32) // 4, (size[1] - 32) // 4
        offsets = [(0, 0), (0, 4 * right), (4 * down, 0), (4 * down, 4 * right), (2 * down, 2 * right)]
        expected = [frames[:, top : top + 32, left : left + 32] for top, left in offsets]
        assert (crop_views(frames, size, 32, 5).numpy() == expected).all()
        ten = crop_views(frames, size, 32, 10).numpy()
        assert (ten[:5] == expected).all() and (ten[5:] == np.array(expected)[:, :, :, ::-1]).all()

    def test_other_numbers(self):
        with pytest.raises(ValueError, match=r"1, 3, 5 or 10\. Received: crops=4"):
            crop_views(noise(1, 40, 40, 3), 40, 32, 4)

    @pytest.mark.parametrize("size", [(1, 1), (1, 500), (7, 3)])
    @pytest.mark.parametrize("crops", [3, 10])
    def test_odd_sizes(self, size, crops):
        assert crop_views(noise(2, *size, 3), (40, 48), 32, crops).shape == (crops, 2, 32, 32, 3)
