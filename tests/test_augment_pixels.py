"""What happens to the pixels of a view: against plain NumPy."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf

from keras_stss.config.data import AugmentConfig, DataConfig
from keras_stss.data.augment import (
    Mix,
    color_jitter,
    mix_draw,
    rand_augment,
    random_erasing,
    random_grayscale,
    training_view,
)
from keras_stss.data.augment.rand_augment import OPERATIONS

LUMA = np.array([0.299, 0.587, 0.114])
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "probability": 0.8}
#: Each key of data.augment with a value that shows, and all together.
SETTINGS = {
    "multi_scale": {},
    "multi_scale_corner": {"crop": "multi_scale_corner"},
    "random_scale": {"crop": "random_scale"},
    "short_sides": {"crop": "random_scale", "short_sides": (80, 90)},
    "random_resized": {"crop": "random_resized"},
    "area": {"crop": "random_resized", "area": (0.4, 0.5)},
    "color_jitter": {"color_jitter": {**JITTER, "probability": 1.0}},
    "grayscale": {"grayscale": 1.0},
    "rand_augment": {"rand_augment": {"ops": 2}},
    "magnitude": {"rand_augment": {"ops": 2, "magnitude": 2.0}},
    "erasing": {"erasing": 1.0},
    "all": {
        "crop": "random_resized",
        "color_jitter": JITTER,
        "grayscale": 0.3,
        "rand_augment": {"ops": 2},
        "erasing": 0.5,
    },
}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def config(setting):
    augment = AugmentConfig(**SETTINGS[setting])
    return DataConfig(
        format="clips", root=".", annotations="c", frames=3, resize=(40, 60), crop=32, augment=augment, workers=2
    )


def view(frames, seed, setting, flip=True):
    return training_view(tf.constant(frames), tf.constant(seed, tf.int64), config(setting), tf.constant(flip)).numpy()


class TestTrainingView:
    @pytest.mark.parametrize("setting", SETTINGS)
    def test_all_frames_alike(self, setting):
        """A clip that stands still stands still afterwards."""
        frames = np.repeat(noise(1, 44, 66, 3), 3, axis=0)
        for seed in range(4):
            found = view(frames, [3, seed], setting)
            assert found.shape == (3, 32, 32, 3) and found.dtype == np.uint8
            assert (found == found[:1]).all()

    @pytest.mark.parametrize("setting", SETTINGS)
    def test_eager_is_tf_data_with_parallel_calls(self, setting):
        clips, data = [noise(3, 44, 60 + number, 3, seed=number) for number in range(5)], config(setting)
        expected = [view(clip, [9, number], setting, number % 2 == 0) for number, clip in enumerate(clips)]

        def examples():
            for number, clip in enumerate(clips):
                yield clip, [9, number], number % 2 == 0

        signature = (
            tf.TensorSpec([3, None, None, 3], tf.uint8),
            tf.TensorSpec([2], tf.int64),
            tf.TensorSpec([], tf.bool),
        )
        examples = tf.data.Dataset.from_generator(examples, output_signature=signature)
        views = examples.map(lambda frames, seed, flip: training_view(frames, seed, data, flip), num_parallel_calls=4)
        assert views.element_spec.shape == (3, 32, 32, 3)
        assert (np.stack([each.numpy() for each in views]) == expected).all()

    @pytest.mark.parametrize("setting", SETTINGS)
    def test_every_seed_its_own_view(self, setting):
        frames = noise(2, 44, 66, 3)
        views = [view(frames, [1, seed], setting).tobytes() for seed in (1, 1, 2, 3, 4)]
        assert views[0] == views[1] and len(set(views)) > 2

    @pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "multi_scale"])
    def test_every_key_counts(self, setting):
        frames, bare = noise(2, 44, 66, 3), {"short_sides": "random_scale", "area": "random_resized"}
        without = {**bare, "magnitude": "rand_augment"}.get(setting, "multi_scale")
        assert any((view(frames, [1, seed], setting) != view(frames, [1, seed], without)).any() for seed in range(4))

    @pytest.mark.parametrize("setting", SETTINGS)
    def test_one_pixel(self, setting):
        assert view(noise(2, 1, 1, 3), [0, 1], setting).shape == (2, 32, 32, 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda frames, seed: color_jitter(frames, seed, *(0.4, 0.4, 0.4, 0.2), probability=0.5),
        lambda frames, seed: random_grayscale(frames, seed, 0.5),
        lambda frames, seed: random_erasing(frames, seed, 0.5),
        lambda frames, seed: rand_augment(frames, seed, 2, 7.0),
        lambda frames, seed: mix_draw(seed, Mix(0.8, 1.0), 32)["box"],
    ],
    ids=["jitter", "grayscale", "erasing", "rand_augment", "mix"],
)
def test_arrays_and_any_type_of_seed(change):
    """Outside a stream: NumPy's arrays give tensors, changed or not, and a seed is its numbers."""
    frames, found = noise(2, 24, 30, 3), []
    for number in range(6):
        seeds = (
            [3, number],
            np.array([3, number], np.int32),
            np.array([3, number]),
            tf.constant([3, number], tf.int64),
        )
        results = [change(frames, seed).numpy() for seed in seeds]
        assert all((result == results[0]).all() for result in results)
        found.append(results[0].tobytes())
    assert len(set(found)) > 1


class TestColor:
    def reference(self, frames, draws, strengths):
        """Brightness, contrast and saturation as torchvision defines them; contrast around the clip's mean."""
        values = frames.astype(np.float64)
        factors = [max(0, 1 - s) + draw * (1 + s - max(0, 1 - s)) for s, draw in zip(strengths, draws)]
        values = np.clip(values * factors[0], 0, 255)
        mean = (values @ LUMA).mean()
        values = np.clip(mean + factors[1] * (values - mean), 0, 255)
        gray = (values @ LUMA)[..., None]
        return np.clip(gray + factors[2] * (values - gray), 0, 255)

    @pytest.mark.parametrize("strengths", [(0.4, 0, 0), (0, 0.9, 0), (0, 0, 0.6), (0.4, 0.4, 0.4), (2.0, 0, 0)])
    def test_jitter(self, strengths):
        frames = noise(2, 8, 9, 3)
        for seed in range(6):
            draws = tf.random.stateless_uniform([5], [5, seed]).numpy().astype(float)
            found = color_jitter(tf.constant(frames), [5, seed], *strengths).numpy()
            assert found.dtype == np.uint8
            assert abs(found - self.reference(frames, draws, strengths)).max() <= 0.51

    @pytest.mark.parametrize("seed", range(4))
    def test_hue(self, seed):
        """Against the standard library's colour model."""
        frames = noise(1, 4, 5, 3)
        shift = (2 * float(tf.random.stateless_uniform([5], [5, seed])[3]) - 1) * 0.5
        found = color_jitter(tf.constant(frames), [5, seed], hue=0.5).numpy()
        for pixel, result in zip(frames.reshape(-1, 3), found.reshape(-1, 3)):
            hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
            expected = np.array(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)) * 255
            assert abs(result - expected).max() <= 1

    def test_probability(self):
        frames = np.full((1, 2, 2, 3), 100, np.uint8)
        changed = [
            (color_jitter(tf.constant(frames), [0, n], brightness=0.9, probability=0.3) != 100).numpy().any()
            for n in range(100)
        ]
        assert 15 <= sum(changed) <= 45

    def test_factors_fill_their_range(self):
        frames = tf.fill([1, 1, 1, 3], tf.constant(100, tf.uint8))
        found = [int(color_jitter(frames, [0, n], brightness=0.4)[0, 0, 0, 0]) for n in range(100)]
        assert 60 <= min(found) < 66 and 134 < max(found) <= 140

    def test_grayscale(self):
        frames = noise(2, 8, 9, 3)
        found = [random_grayscale(tf.constant(frames), [0, n], 0.4).numpy() for n in range(60)]
        expected = np.repeat((frames @ LUMA)[..., None], 3, -1)
        is_gray = [abs(each - expected).max() <= 0.51 for each in found]
        assert all(gray or (each == frames).all() for gray, each in zip(is_gray, found))
        assert 12 <= sum(is_gray) <= 36


class TestOperations:
    """Each operation of RandAugment on a clip of three frames."""

    frames = np.clip(noise(3, 24, 30, 3).astype(int) // 2 + np.array([20, 60, 90]), 0, 255).astype(np.uint8)

    def apply(self, name, amount, frames=None):
        frames = self.frames if frames is None else frames
        return OPERATIONS[name](tf.constant(frames), tf.constant(amount, tf.float32)).numpy()

    @pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("auto_contrast", "equalize")])
    def test_nothing_at_no_strength(self, name):
        assert (self.apply(name, 0.0) == self.frames).all()

    @pytest.mark.parametrize("size", [(1, 1), (1, 40), (2, 5), (3, 3)])
    def test_tiny_frames(self, size):
        frames = noise(2, *size, 3)
        for name in OPERATIONS:
            found = self.apply(name, 0.7, frames)
            assert found.shape == frames.shape and found.dtype == np.uint8, name
        assert ((self.apply("sharpness", 0.7, frames) != frames).any(-1).sum((1, 2)) == (size == (3, 3))).all()

    @pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "identity"])
    def test_something_at_full_strength(self, name):
        found = self.apply(name, 1.0)
        assert found.dtype == np.uint8 and found.shape == self.frames.shape and (found != self.frames).any()

    def test_auto_contrast(self):
        values = self.frames.astype(float)
        low, high = values.min((0, 1, 2)), values.max((0, 1, 2))
        assert abs(self.apply("auto_contrast", 0.5) - (values - low) * 255 / (high - low)).max() <= 0.51
        flat = np.full((2, 3, 3, 3), 7, np.uint8)
        assert (self.apply("auto_contrast", 0.5, flat) == flat).all()

    def test_equalize(self):
        """PIL's rule, over all frames of the clip."""
        expected = np.empty_like(self.frames)
        for channel in range(3):
            counts = np.bincount(self.frames[..., channel].ravel(), minlength=256)
            step = (counts.sum() - counts[counts > 0][-1]) // 255
            table = [min((step // 2 + counts[:value].sum()) // step, 255) for value in range(256)]
            expected[..., channel] = np.array(table)[self.frames[..., channel]]
        assert (self.apply("equalize", 0.1) == expected).all()
        few = self.frames[:1, :4, :5]  # fewer pixels than values: nothing to spread
        assert (self.apply("equalize", 0.1, few) == few).all()

    @pytest.mark.parametrize(("amount", "bits"), [(0.25, 7), (0.5, 6), (-1.0, 4)])
    def test_posterize(self, amount, bits):
        assert (self.apply("posterize", amount) == self.frames & (256 - 2 ** (8 - bits))).all()

    @pytest.mark.parametrize(("amount", "threshold"), [(0.5, 128), (-0.25, 192), (1.0, 0)])
    def test_solarize(self, amount, threshold):
        assert (
            self.apply("solarize", amount) == np.where(self.frames >= threshold, 255 - self.frames, self.frames)
        ).all()

    @pytest.mark.parametrize("amount", [-0.7, 0.7])
    def test_factors(self, amount):
        values, factor = self.frames.astype(float), 1 + 0.9 * amount
        mean, gray = (values @ LUMA).mean(), (values @ LUMA)[..., None]
        for name, center in (("brightness", 0), ("contrast", mean), ("color", gray)):
            expected = np.clip(center + factor * (values - center), 0, 255)
            assert abs(self.apply(name, amount) - expected).max() <= 0.51, name

    @pytest.mark.parametrize("amount", [-0.7, 0.7])
    def test_sharpness(self, amount):
        values = self.frames.astype(float)
        smooth = values.copy()
        rows, columns = values.shape[1:3]
        total = sum(values[:, i : rows - 2 + i, j : columns - 2 + j] for i in range(3) for j in range(3))
        smooth[:, 1:-1, 1:-1] = (total + 4 * values[:, 1:-1, 1:-1]) / 13
        expected = np.clip(values + 0.9 * amount * (values - smooth), 0, 255)
        assert abs(self.apply("sharpness", amount) - expected).max() <= 0.51

    def moved(self, matrix, shift):
        """Each pixel takes what lies at matrix · (x, y) + shift from the centre, between the four pixels there."""
        _, rows, columns, _ = self.frames.shape
        center = np.array([(columns - 1) / 2, (rows - 1) / 2])
        padded = np.full((3, rows + 2, columns + 2, 3), 128.0)
        padded[:, 1:-1, 1:-1] = self.frames
        expected = np.empty(self.frames.shape)
        for y in range(rows):
            for x in range(columns):
                at = np.asarray(matrix) @ ([x, y] - center) + center + shift
                at = np.clip(at, -1, [columns, rows])
                (left, top), (right, down) = np.floor(at).astype(int), at - np.floor(at)
                part = padded[:, top + 1 : top + 3, left + 1 : left + 3]
                weights = np.outer([1 - down, down], [1 - right, right])[: part.shape[1], : part.shape[2]]
                expected[:, y, x] = (part * weights[None, :, :, None]).sum((1, 2))
        return expected

    @pytest.mark.parametrize("amount", [-0.6, 0.9])
    def test_moves(self, amount):
        angle = np.deg2rad(30 * amount)
        one = np.eye(2)
        turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        cases = {
            "rotate": (turn, [0, 0]),
            "shear_x": ([[1, 0.3 * amount], [0, 1]], [0, 0]),
            "shear_y": ([[1, 0], [0.3 * amount, 1]], [0, 0]),
            "translate_x": (one, [0.3 * amount * 30, 0]),
            "translate_y": (one, [0, 0.3 * amount * 24]),
        }
        for name, (matrix, shift) in cases.items():
            assert abs(self.apply(name, amount) - self.moved(matrix, shift)).max() <= 0.6, name

    def test_draws(self):
        """Every operation is drawn, in both directions, and two after one another are two draws."""
        frames = tf.constant(self.frames)
        possible = {self.apply(name, amount).tobytes() for name in OPERATIONS for amount in (-0.5, 0.5)}
        one = tf.function(lambda seed: rand_augment(frames, seed, 1, 5.0))
        found = {one(tf.constant([2, n])).numpy().tobytes() for n in range(250)}
        assert found == possible
        two = tf.function(lambda seed: rand_augment(frames, seed, 2, 5.0))
        assert len({two(tf.constant([2, n])).numpy().tobytes() for n in range(60)} - possible) > 20


class TestErasing:
    def test_one_box_of_noise(self):
        frames = np.repeat(np.full((1, 60, 80, 3), 90, np.uint8), 3, 0)
        shares, ratios, erase = [], [], tf.function(lambda seed: random_erasing(tf.constant(frames), seed, 0.7))
        for number in range(100):
            found = erase(tf.constant([4, number])).numpy()
            assert (found == found[:1]).all()
            changed = (found[0] != 90).any(-1)
            if not changed.any():
                continue
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            inside = found[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert (inside == 90).all(-1).mean() < 0.02 and 60 < inside.mean() < 195
            shares.append(height * width / 4800)
            ratios.append(width / height)
        assert 55 <= len(shares) <= 85
        assert 0.015 < min(shares) < 0.08 and 0.25 < max(shares) < 0.36
        assert 0.25 < min(ratios) < 0.5 and 2 < max(ratios) < 4
