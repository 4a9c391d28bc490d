from fractions import Fraction

import numpy as np
import pytest

from keras_stss.data.sample import clip_indices, segment_indices


@pytest.mark.parametrize(
    ("n", "frames", "expected"),
    [
        (80, 8, [5, 15, 25, 35, 45, 55, 65, 75]),
        (47, 8, [2, 8, 14, 20, 26, 32, 38, 44]),
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (5, 8, [0, 0, 1, 2, 2, 3, 4, 4]),
        (1, 8, [0] * 8),
        (3, 1, [1]),
    ],
)
def test_middle_of_each_segment(n, frames, expected):
    indices = segment_indices(n, frames)
    assert indices.dtype == np.int64
    assert indices.tolist() == expected
    assert expected == [int(n / frames / 2 + n / frames * i) for i in range(frames)]


def test_training_draws_from_each_segment():
    draws = np.stack([segment_indices(83, 8, np.random.default_rng(seed)) for seed in range(300)])
    for segment, column in enumerate(draws.T):
        # 83 // 8 = 10: the last three frames are not drawn from.
        assert set(column) == set(range(10 * segment, 10 * segment + 10))


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_training_on_fewer_frames_than_segments(n):
    for seed in range(50):
        indices = segment_indices(n, 8, np.random.default_rng(seed))
        assert indices.shape == (8,) and indices.dtype == np.int64
        assert (np.diff(indices) >= 0).all() and indices.min() >= 0 and indices.max() < n
        assert len(set(indices)) >= n - 1 or n == 7


def test_same_generator_same_indices():
    first, second = (segment_indices(100, 8, np.random.default_rng(7)) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize(("n", "frames"), [(0, 8), (8, 0)])
def test_nothing_to_sample(n, frames):
    with pytest.raises(ValueError, match=f"n={n}, frames={frames}"):
        segment_indices(n, frames)


class TestTesting:
    """The formulas are those of ops/dataset.py of mit-han-lab/temporal-shift-module, less the 1 of its file names."""

    NUMBERS = (1, 3, 7, 8, 9, 16, 31, 47, 64, 65, 73, 80, 100, 163, 300)

    @pytest.mark.parametrize("frames", [1, 5, 8, 16])
    @pytest.mark.parametrize("n", NUMBERS)
    def test_one_clip_and_two(self, n, frames):
        """``_get_test_indices``: the middle of each segment, and with twice_sample its beginning as well."""
        tick = Fraction(n, frames)
        middle = [int(tick / 2 + tick * i) for i in range(frames)]
        beginning = [int(tick * i) for i in range(frames)]
        assert clip_indices(n, frames).tolist() == [middle]
        assert clip_indices(n, frames, clips=2).tolist() == [middle, beginning]

    def test_floats_differ_only_at_whole_numbers(self):
        """The released code divides in floats, which may fall just below an index that is exact."""
        for n in range(1, 301):
            for frames in (8, 16):
                tick = n / frames
                theirs = np.array([int(tick / 2.0 + tick * i) for i in range(frames)])
                exact = [(2 * i + 1) * n % (2 * frames) == 0 for i in range(frames)]
                difference = segment_indices(n, frames) - theirs
                assert set(difference) <= {0, 1} and not difference[~np.array(exact)].any()

    @pytest.mark.parametrize("clips", [1, 2, 3, 5, 10])
    def test_n_clips_are_spread_over_the_segments(self, clips):
        """In segments of 100 frames: distinct places in equal steps, the middle first."""
        indices = clip_indices(800, 8, clips=clips)
        assert indices.shape == (clips, 8) and indices.dtype == np.int64
        places = indices[:, 0]
        assert (indices == places[:, None] + 100 * np.arange(8)).all() and places[0] == 50
        steps = np.diff(sorted([*places, places.min() + 100]))
        assert steps.min() >= 100 // clips and steps.max() <= -(-100 // clips)

    @pytest.mark.parametrize("frames", [1, 5, 8, 16, 64])
    @pytest.mark.parametrize("n", NUMBERS)
    def test_ten_dense_clips(self, n, frames):
        """``_get_test_indices`` with dense_sample."""
        positions = max(1, 1 + n - 64)
        starts = np.linspace(0, positions - 1, num=10, dtype=int).tolist()
        expected = [[(i * (64 // frames) + start) % n for i in range(frames)] for start in starts]
        assert clip_indices(n, frames, "dense", 10).tolist() == expected

    def test_one_dense_clip_is_the_middle_one(self):
        assert clip_indices(164, 8, "dense").tolist() == [[50 + 8 * i for i in range(8)]]
        assert clip_indices(164, 8, "dense", 3)[1].tolist() == [50 + 8 * i for i in range(8)]


class TestTraining:
    """``_sample_indices`` of the same file."""

    @pytest.mark.parametrize(("n", "frames"), [(8, 8), (17, 8), (83, 8), (100, 16)])
    def test_segments(self, n, frames):
        """Multiples of n // T, plus an array of draws below n // T."""
        rng, same = np.random.default_rng(3), np.random.default_rng(3)
        average_duration = n // frames
        expected = [i * average_duration + draw for i, draw in enumerate(same.integers(average_duration, size=frames))]
        assert clip_indices(n, frames, rng=rng).tolist() == [expected]

    @pytest.mark.parametrize(("n", "starts"), [(10, {0}), (64, {0}), (65, {0}), (66, {0, 1}), (70, set(range(6)))])
    def test_dense_starts(self, n, starts):
        """randint(0, positions - 1), whose upper end is never drawn, for positions = n - 63."""
        found = set()
        for seed in range(200):
            (indices,) = clip_indices(n, 8, "dense", rng=np.random.default_rng(seed))
            assert indices.tolist() == [(int(indices[0]) + 8 * i) % n for i in range(8)]
            found.add(int(indices[0]))
        assert found == starts

    @pytest.mark.parametrize("sampling", ["segment", "dense"])
    def test_random_clips_are_draws_of_their_own(self, sampling):
        clips = clip_indices(300, 8, sampling, 10, np.random.default_rng(0))
        assert clips.shape == (10, 8) and len(np.unique(clips, axis=0)) == 10
        assert (clips == clip_indices(300, 8, sampling, 10, np.random.default_rng(0))).all()
        single = clip_indices(300, 8, sampling, 1, np.random.default_rng(0))
        assert (single == clips[:1]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, "dense"), "n=0"),
        ((9, 65, "dense"), "frames from 1 to 64"),
        ((9, 8, "sparse"), "sampling='sparse'"),
        ((9, 8, "segment", 0), "clips=0"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        clip_indices(*arguments)
