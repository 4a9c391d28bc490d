import numpy as np
import pytest

from keras_stss.data.sample import segment_indices


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
