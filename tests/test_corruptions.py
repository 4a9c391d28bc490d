"""Each corruption changes what it says and nothing else; a higher severity does more of the same damage."""

import itertools

import numpy as np
import pytest

from keras_stss.data.annotations import DataError
from keras_stss.data.corruptions import (
    CORRUPTIONS,
    Corrupted,
    center_frame,
    corrupt,
    find_corruptions,
)

CENTER = ["center_occlusion", "center_motion_blur"]
TIME = ["dropped_frames", "frozen_frames", "shuffled_frames", "reversed_frames", "frame_rate"]


def a_clip(frames=8, height=56, width=64, seed=0):
    """A bright square over gradients, with some noise, that moves on from frame to frame."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    clip = np.stack([60 + 60 * y / height, 100 + 40 * x / width, 90 + 0 * x], -1) + rng.normal(0, 6, (height, width, 3))
    clip = np.repeat(clip[None], frames, 0)
    for number, frame in enumerate(clip):
        frame[height // 4 : height // 2, 3 * number : 3 * number + width // 4] = [220, 40 + 10 * number, 200]
    return np.clip(np.round(clip), 0, 255).astype(np.uint8)


def damaged(clip, name, severity, seed=0):
    return corrupt(clip, name, severity, np.random.default_rng(seed))


def distance(clip, other):
    return np.abs(clip.astype(float) - other).mean()


def roughness(clip, other):
    return np.abs(np.diff(other[0].astype(float), axis=0)).mean()


def blocks(clip, other):
    """The fewer colours are left, the more."""
    return -len(np.unique(other[0].reshape(-1, 3), axis=0)) + len(np.unique(clip[0].reshape(-1, 3), axis=0))


#: What a higher severity makes more of, where that is not the mean distance of the pixels.
DAMAGE = {"fog": roughness, "pixelate": blocks}


def severities(name):
    return range(1, len(CORRUPTIONS[name].levels) + 1)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_all_have_in_common(name):
    """The same shape and type for any size, the input untouched, seeded, nothing at severity 0, damage that grows."""
    clip = a_clip() if name != "fog" else np.full((8, 56, 64, 3), 100, np.uint8)
    kept = clip.copy()
    assert (damaged(clip, name, 0) == clip).all()
    results = [damaged(clip, name, severity) for severity in severities(name)]
    assert (clip == kept).all()
    far = [DAMAGE.get(name, distance)(clip, result) for result in results]
    assert far[0] > 0 and all(one < other for one, other in itertools.pairwise(far)), far
    for severity, result in enumerate(results, 1):
        assert result.dtype == np.uint8 and result.shape == clip.shape
        assert (damaged(clip, name, severity) == result).all()
    for shape in ((1, 37, 23), (3, 19, 41), (2, 2, 3), (1, 1, 1)):
        odd = a_clip(*shape) if min(shape[1:]) > 3 else np.full((*shape, 3), 90, np.uint8)
        for severity in (1, len(results)):
            result = damaged(odd, name, severity)
            assert result.dtype == np.uint8 and result.shape == odd.shape
    with pytest.raises(ValueError, match=f"from 0 to {len(results)}. Received: severity={len(results) + 1}"):
        damaged(clip, name, len(results) + 1)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in (*CENTER, *TIME, "compression")])
def test_each_frame_is_damaged(name):
    clip = a_clip()
    assert all((one != other).any() for one, other in zip(clip, damaged(clip, name, 3), strict=True))


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "zoom_blur", *CENTER])
def test_the_same_damage_at_any_size(name):
    clip = a_clip()
    large = np.repeat(np.repeat(clip, 4, 1), 4, 2)  # at 224 pixels
    for severity in severities(name):
        shares = [distance(each, damaged(each, name, severity)) for each in (large, clip)]
        assert shares[0] == pytest.approx(shares[1], rel=0.35), severity


# --- the centre frame -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CENTER)
@pytest.mark.parametrize(("count", "center"), [(8, 3), (16, 7), (5, 2), (1, 0)])
def test_the_centre_frame_alone(name, count, center):
    """The fourth of eight."""
    clip = a_clip(count)
    assert center_frame(count) == center and len(CORRUPTIONS[name].levels) == 6
    for severity in severities(name):
        changed = (damaged(clip, name, severity) != clip).any((1, 2, 3))
        assert np.flatnonzero(changed).tolist() == [center]


def test_occluded_squares_at_the_papers_size():
    clip = np.full((8, 224, 224, 3), 9, np.uint8)
    for severity, side in zip(range(1, 7), (40, 80, 120, 160, 200, 224), strict=True):
        black = (damaged(clip, "center_occlusion", severity)[3] == 0).all(-1)
        rows, columns = (np.flatnonzero(black.any(axis)) for axis in (1, 0))
        assert black.sum() == side * side
        assert (rows[0], rows[-1], columns[0], columns[-1]) == ((224 - side) // 2, (224 + side) // 2 - 1) * 2
    quarter = np.full((8, 56, 80, 3), 9, np.uint8)
    assert (damaged(quarter, "center_occlusion", 1)[3] == 0).all(-1).sum() == 10 * 10


def test_motion_blur_is_half_a_gaussian_along_a_line():
    """A white point becomes a straight trail to one side of it, as bright as the weights say."""
    clip = np.zeros((1, 224, 224, 3), np.uint8)
    clip[0, 112, 112] = 255
    for severity, (radius, sigma) in enumerate(((10, 3), (15, 5)), 1):
        trail = damaged(clip, "motion_blur", severity)[0, :, :, 0].astype(float)
        weights = np.exp(-0.5 * (np.arange(2 * radius + 1) / sigma) ** 2)
        weights *= 255 / weights.sum()
        places = np.argwhere(trail) - 112
        lengths = np.abs(places).max(1)  # steps are whole pixels along the longer way
        assert trail[112, 112] == pytest.approx(weights[0], abs=1) and trail.max() == trail[112, 112]
        assert (places @ places[lengths.argmax()] >= 0).all()  # one side
        direction = places[lengths.argmax()] / np.linalg.norm(places[lengths.argmax()])
        assert np.abs(places @ [direction[1], -direction[0]]).max() <= 1
        assert trail.sum() == pytest.approx(255, abs=12)
        visible = (weights > 0.5).sum()
        assert visible / np.sqrt(2) - 2 <= lengths.max() <= visible


def test_motion_goes_one_way_through_a_clip():
    clip = np.zeros((3, 64, 64, 3), np.uint8)
    clip[:, 32, 32] = 255
    result = damaged(clip, "motion_blur", 3)
    assert (result == result[0]).all()
    assert (damaged(clip, "motion_blur", 3, seed=1) != result).any()


# --- pixels by hand ---------------------------------------------------------------------------------------------------


def test_noise_has_the_deviation_that_is_said():
    gray = np.full((4, 64, 64, 3), 128, np.uint8)
    for severity, deviation in zip(range(1, 4), (0.08, 0.12, 0.18), strict=True):
        noise = damaged(gray, "gaussian_noise", severity).astype(float) - 128
        assert noise.std() == pytest.approx(255 * deviation, rel=0.03) and abs(noise.mean()) < 1
    noise = damaged(gray, "shot_noise", 1).astype(float)  # 60 photons at white
    assert noise.mean() == pytest.approx(128, abs=1) and noise.std() == pytest.approx(
        255 * (128 / 255 / 60) ** 0.5, rel=0.03
    )
    for severity, share in zip(range(1, 6), (0.03, 0.06, 0.09, 0.17, 0.27), strict=True):
        result = damaged(gray, "impulse_noise", severity)
        assert set(np.unique(result)) == {0, 128, 255}
        assert (result == 0).mean() == pytest.approx(share / 2, rel=0.1)
        assert (result == 255).mean() == pytest.approx(share / 2, rel=0.1)
    frames = damaged(gray, "gaussian_noise", 1)
    assert (frames[0] != frames[1]).any()  # drawn anew for each


def test_brightness_and_contrast_by_hand():
    frame = np.array([[[100, 50, 0], [0, 0, 0], [250, 250, 125]]], np.uint8)[None]
    # 0.2 · 255 = 51 more of the largest, the others in proportion; black becomes grey, white can only be white.
    assert damaged(frame, "brightness", 2)[0, 0].tolist() == [[151, 76, 0], [51, 51, 51], [255, 255, 128]]
    pair = np.array([[[0, 100, 200], [100, 100, 100]]], np.uint8)[None]
    assert damaged(pair, "contrast", 1)[0, 0].tolist() == [[30, 100, 170], [70, 100, 130]]


def test_pixelated_is_blocks_of_means():
    clip = a_clip(1, 40, 40)
    result = damaged(clip, "pixelate", 5)  # a quarter: blocks of four by four
    blocks = clip.reshape(1, 10, 4, 10, 4, 3).mean((2, 4), keepdims=True)
    expected = np.broadcast_to(blocks, (1, 10, 4, 10, 4, 3)).reshape(clip.shape)
    assert np.abs(result - expected).max() <= 0.5 + 1e-9
    assert len(np.unique(damaged(a_clip(1, 37, 23), "pixelate", 1).reshape(-1, 3), axis=0)) <= 22 * 13


def test_a_point_out_of_focus_is_a_disk():
    clip = np.zeros((1, 224, 224, 3), np.uint8)
    clip[0, 100, 120] = 255
    disk = damaged(clip, "defocus_blur", 1)[0, :, :, 0]
    y, x = np.mgrid[:224, :224]
    inside = (y - 100) ** 2 + (x - 120) ** 2 <= 9
    assert inside.sum() == 29 and set(np.unique(disk[inside])) == {9} and not disk[~inside].any()  # 255 / 29 = 8.8
    even = np.full((1, 30, 21, 3), 77, np.uint8)
    for name in ("defocus_blur", "motion_blur", "zoom_blur", "pixelate"):
        assert (damaged(even, name, 5) == 77).all()  # nothing comes in from outside


def test_a_zoom_stands_still_in_the_centre_only():
    clip = np.zeros((1, 101, 101, 3), np.uint8)
    clip[0, 50, 50] = clip[0, 50, 90] = 255
    result = damaged(clip, "zoom_blur", 5)[0, :, :, 0]
    assert result[50, 50] == 255 and result[50, 90] < 100
    trail = np.flatnonzero(result[50, 60:]) + 60
    assert trail[0] >= 89 and trail[-1] == 100  # away from the centre


def test_fog_is_the_same_for_all_frames_and_no_brighter_than_the_brightest():
    clip = np.repeat(a_clip(1), 3, 0)
    result = damaged(clip, "fog", 2)
    assert (result == result[0]).all() and result.max() <= clip.max()
    assert (damaged(clip, "fog", 2, seed=1) != result).any()
    for severity, left in ((1, 0.4), (3, 0.286), (5, 0.25)):  # 1 / (1 + amount) of the clip, where it holds a white
        pair = np.repeat(a_clip(1), 2, 0)
        pair[1] = 255 - pair[1]
        pair[:, 0, 0] = 255
        foggy = damaged(pair, "fog", severity).astype(float)
        assert (foggy[0] - foggy[1]).std() == pytest.approx(left * (pair[0] - pair[1].astype(float)).std(), rel=0.02)


# --- time -------------------------------------------------------------------------------------------------------------


def order_of(name, severity, count=8, seed=0):
    """Which frame stands at each place; -1 for a black one."""
    clip = np.broadcast_to(np.arange(10, 10 + count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 3))
    result = damaged(clip, name, severity, seed)
    assert (result == result[:, :1, :1, :1]).all()
    return np.where(result[:, 0, 0, 0] > 0, result[:, 0, 0, 0].astype(int) - 10, -1).tolist()


def test_dropped_frames_are_black_and_more_of_them_include_the_fewer():
    before = set()
    for severity, count in zip(range(1, 6), (1, 2, 3, 4, 5), strict=True):
        order = order_of("dropped_frames", severity)
        black = {place for place, frame in enumerate(order) if frame == -1}
        assert len(black) == count and before < black
        assert all(order[place] == place for place in range(8) if place not in black)
        before = black


def test_frozen_frames_are_a_run():
    for seed in range(12):
        for severity, count in zip(range(1, 6), (1, 2, 3, 4, 5), strict=True):
            order = order_of("frozen_frames", severity, seed=seed)
            stuck = [place for place in range(8) if order[place] != place]
            assert len(stuck) == count and stuck == list(range(stuck[0], stuck[0] + count))
            assert all(order[place] == stuck[0] - 1 for place in stuck)


def test_shuffled_frames_are_all_there_and_so_many_move():
    for severity, count in zip(range(1, 6), (2, 3, 5, 6, 8), strict=True):
        for seed in range(6):
            order = order_of("shuffled_frames", severity, seed=seed)
            assert sorted(order) == list(range(8))
            assert sum(place != frame for place, frame in enumerate(order)) == count


def test_frame_rate_and_reversal():
    assert [order_of("frame_rate", severity) for severity in (1, 2, 5)] == [
        [0, 0, 2, 2, 4, 4, 6, 6],
        [0, 0, 0, 3, 3, 3, 6, 6],
        [0] * 8,
    ]
    assert order_of("reversed_frames", 1) == [7, 6, 5, 4, 3, 2, 1, 0]
    for name in ("frozen_frames", "shuffled_frames", "reversed_frames", "frame_rate"):
        assert order_of(name, 1, count=1) == [0]


# --- which, and of which clip -----------------------------------------------------------------------------------------


def test_each_clip_and_view_has_damage_of_its_own():
    """A function of the clip's name, the view and the seed, wherever the clip stands."""
    views = np.stack([a_clip(2)] * 2)
    first = Corrupted("gaussian_noise", 2, ["a", "b"])(views, 0)
    assert first.shape == views.shape and (first[0] != first[1]).any()
    assert (Corrupted("gaussian_noise", 2, ["b", "a"])(views, 1) == first).all()
    assert (Corrupted("gaussian_noise", 2, ["a", "b"])(views, 1) != first).any()
    assert (Corrupted("gaussian_noise", 2, ["a", "b"], seed=1)(views, 0) != first).any()


def test_names_and_groups():
    assert find_corruptions(["selfy"]) == CENTER
    assert find_corruptions(["jpeg", "fog", "jpeg"]) == ["fog", "jpeg"]
    assert find_corruptions(["all"]) == list(CORRUPTIONS)
    assert find_corruptions(["video", "selfy"]) == [*CENTER, *TIME, "compression"]
    with pytest.raises(DataError, match=r"is called snow, frost. There are:\n  center_occlusion +selfy +a black"):
        find_corruptions(["snow", "fog", "frost"])
