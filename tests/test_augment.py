import numpy as np
import pytest
import tensorflow as tf

from keras_stss.data.augment import center_view, may_flip, random_view

SCALES = (1.0, 0.875, 0.75, 0.66)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def coordinates(height, width):
    """One frame whose first two channels are its row and column, in 255ths."""
    rows, columns = np.mgrid[0:height, 0:width]
    frame = np.stack([rows * 255 / (height - 1), columns * 255 / (width - 1), 0 * rows], -1)
    return np.round(frame)[None].astype(np.uint8)


class TestMayFlip:
    @pytest.mark.parametrize(
        "text",
        [
            "Pushing something from left to right",
            "Turning LEFT",
            "stirring clockwise",
            "spin anticlockwise",
            "spin counter-clockwise",
            "counterclockwise",
            "turn_right",
            "SwipeLeft",
            "moving leftwards",
            "right-hand wave",
            "Waving lefthanded",
            "Taking the rightmost cup",
        ],
    )
    def test_side_or_turn(self, text):
        assert not may_flip(text)

    @pytest.mark.parametrize("text", ["Showing a copyright notice", "Putting something upright", "bright cleft", ""])
    def test_neither(self, text):
        assert may_flip(text)


class TestCenterView:
    def test_right_size_keeps_its_pixels(self):
        frames = noise(2, 240, 320, 3)
        view = center_view(frames, (240, 320), 224).numpy()
        assert view.dtype == np.uint8
        assert (view == frames[:, 8:232, 48:272]).all()

    def test_crop_sized_frames_pass_unchanged(self):
        frames = noise(2, 32, 32, 3)
        assert (center_view(frames, (64, 80), 32).numpy() == frames).all()

    def test_double_size_is_the_centre_scaled(self):
        view = center_view(coordinates(480, 640), (240, 320), 224).numpy()[0].astype(float)
        # Rows 16 to 463 of 480, columns 96 to 543 of 640.
        assert view[0, 0, 0] == pytest.approx(16.5 / 479 * 255, abs=1) and view[0, 0, 1] == pytest.approx(38.5, abs=1)
        assert view[-1, -1, 0] == pytest.approx(246.2, abs=1) and view[-1, -1, 1] == pytest.approx(216.5, abs=1)

    def test_aspect_ratio_is_not_kept_with_two_numbers(self):
        view = center_view(coordinates(240, 640), (240, 320), 224).numpy()[0].astype(float)
        # The same share of rows and of columns as in a frame of 240x320.
        assert view[0, 0].tolist() == pytest.approx([8 / 239 * 255, 96.5 / 639 * 255, 0], abs=1)

    def test_short_side_keeps_the_aspect_ratio(self):
        frames = noise(1, 240, 427, 3)
        view = center_view(frames, 240, 224).numpy()
        assert (view == frames[:, 8:232, 101:325]).all()
        tall = center_view(noise(1, 427, 240, 3), 240, 224).numpy()
        assert (tall == noise(1, 427, 240, 3)[:, 101:325, 8:232]).all()

    def test_shrinking_does_not_skip_pixels(self):
        stripes = np.zeros((1, 64, 64, 3), np.uint8)
        stripes[:, :, ::4] = 255
        view = center_view(stripes, (16, 16), 16).numpy()
        # At the edges the filter is cut off.
        assert abs(view[:, :, 1:-1].astype(int) - 64).max() < 2

    @pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (7, 3)])
    def test_odd_sizes(self, size):
        for resize in ((40, 48), 40):
            assert center_view(noise(2, *size, 3), resize, 32).shape == (2, 32, 32, 3)

    def test_unknown_static_shape(self):
        function = tf.function(lambda frames: center_view(frames, (40, 48), 32))
        concrete = function.get_concrete_function(tf.TensorSpec([None, None, None, 3], tf.uint8))
        for size in ((40, 48), (32, 32), (31, 99)):
            frames = noise(3, *size, 3)
            assert (concrete(tf.constant(frames)).numpy() == center_view(frames, (40, 48), 32).numpy()).all()
        assert not any("PyFunc" in node.type for node in concrete.graph.get_operations())


class TestRandomView:
    def view(self, frames, seed, flip=False, resize=(40, 60), crop=32, scales=SCALES):
        return random_view(frames, tf.constant(seed), resize, crop, scales, tf.constant(flip)).numpy()

    def test_same_seed_same_view(self):
        frames = noise(4, 40, 60, 3)
        first = self.view(frames, [1, 2])
        assert first.shape == (4, 32, 32, 3) and first.dtype == np.uint8
        assert (first == self.view(frames, [1, 2])).all()
        assert any((first != self.view(frames, [1, seed])).any() for seed in range(3, 6))

    def test_all_frames_alike(self):
        frames = np.repeat(noise(1, 50, 70, 3), 5, axis=0)
        for seed in range(8):
            view = self.view(frames, [0, seed], flip=True)
            assert (view == view[:1]).all()

    def test_boxes(self):
        """Reads box and place off a picture of coordinates."""
        heights, pairs, tops, lefts = set(), set(), [], []
        for seed in range(150):
            # Bilinear ends lie half a step inside the box.
            view = self.view(coordinates(120, 160), [5, seed], resize=(120, 160), crop=60)[0].astype(float)
            top, bottom = (view[row, 0, 0] * 119 / 255 for row in (0, -1))
            left, right = (view[0, column, 1] * 159 / 255 for column in (0, -1))
            height, width = ((far - near) * 60 / 59 for far, near in ((bottom, top), (right, left)))
            sizes = [min((120, 105, 90, 79), key=lambda side: abs(side - found)) for found in (height, width)]
            assert abs(sizes[0] - height) < 2 and abs(sizes[1] - width) < 2
            heights.add(sizes[0])
            pairs.add(tuple(sizes))
            tops.append(top)
            lefts.append(left)
        assert heights == {120, 105, 90, 79}
        steps = [120, 105, 90, 79]
        assert pairs == {(h, w) for h in steps for w in steps if abs(steps.index(h) - steps.index(w)) <= 1}
        assert min(tops) < 3 and max(tops) > 30 and min(lefts) < 5 and max(lefts) > 65

    def test_right_size_keeps_its_pixels(self):
        frames = noise(1, 32, 48, 3)
        view = self.view(frames, [3, 4], resize=(32, 48), scales=(1.0,))
        assert any((view == frames[:, :, left : left + 32]).all() for left in range(17))

    def test_mirrors_half_where_allowed(self):
        frames = noise(1, 32, 32, 3)
        arguments = {"resize": (32, 32), "scales": (1.0,)}
        seeds = [[0, seed] for seed in range(60)]
        mirrored = sum((self.view(frames, seed, True, **arguments) == frames[:, :, ::-1]).all() for seed in seeds)
        kept = sum((self.view(frames, seed, True, **arguments) == frames).all() for seed in seeds)
        assert mirrored + kept == 60 and 18 <= mirrored <= 42
        assert all((self.view(frames, seed, False, **arguments) == frames).all() for seed in seeds[:20])

    @pytest.mark.parametrize("resize", [(40, 60), 40])
    def test_eager_is_tf_data(self, resize):
        clips = [noise(3, 44, 50 + number, 3) for number in range(4)]

        def examples():
            for number, clip in enumerate(clips):
                yield clip, [9, number], number % 2 == 0

        signature = (
            tf.TensorSpec([3, None, None, 3], tf.uint8),
            tf.TensorSpec([2], tf.int32),
            tf.TensorSpec([], tf.bool),
        )
        dataset = tf.data.Dataset.from_generator(examples, output_signature=signature)
        dataset = dataset.map(lambda frames, seed, flip: random_view(frames, seed, resize, 32, SCALES, flip))
        assert dataset.element_spec.shape == (3, 32, 32, 3)
        for number, view in enumerate(dataset):
            expected = self.view(clips[number], [9, number], number % 2 == 0, resize=resize)
            assert (view.numpy() == expected).all()

    @pytest.mark.parametrize("size", [(1, 1), (1, 300), (3, 7)])
    def test_odd_sizes(self, size):
        for seed in range(5):
            assert self.view(noise(2, *size, 3), [0, seed]).shape == (2, 32, 32, 3)
