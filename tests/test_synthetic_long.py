"""The harder embedded data set: what it takes to tell its classes, measured on its pixels."""

import av
import numpy as np
import pytest

from keras_stss.data.sample import segment_indices
from keras_stss.data.synthetic import long_range, prepare

HEIGHT = 48
REACH = 3  # sampled frames


def clip(index, seed=0):
    """Pixels of a clip of class ``index``, uint8 (16, 48, 48, 3)."""
    rng = np.random.default_rng((seed, index))
    return long_range.render_film(long_range.plan_clip(index, rng), HEIGHT, HEIGHT)


def sampled(frames, rng=None):
    """Grey frames with mean 0, float (8, 48, 48), one of each segment as training (with ``rng``) or testing takes."""
    grey = frames[segment_indices(len(frames), 8, rng)].astype(float).mean(-1)
    return grey - grey.mean((1, 2), keepdims=True)


def shift(first, second, bound=14):
    """(correlation, down, right): how far the second frame's content has moved, by trying all whole shifts."""
    spectrum = np.conj(np.fft.fft2(first, (96, 96))) * np.fft.fft2(second, (96, 96))
    products = np.fft.ifft2(spectrum).real
    steps = np.arange(-bound, bound + 1)
    overlap = np.outer(HEIGHT - np.abs(steps), HEIGHT - np.abs(steps))
    scores = products[np.ix_(steps, steps)] / overlap / (first.std() * second.std())
    place = np.unravel_index(np.argmax(scores), scores.shape)
    return scores[place], *(steps[list(place)])


def readings(index, distance, clips=4):
    """Mean over clips of :func:`shift` between frames a distance apart, and its values one by one."""
    values = []
    for seed in range(clips):
        frames = sampled(clip(index, seed), np.random.default_rng(seed))
        pairs = zip(frames[:-distance], frames[distance:], strict=True)
        values.append([shift(*pair) for pair in pairs])
    return np.array([np.mean(one, 0) for one in values])


def test_classes_pair_up_and_a_partner_is_the_film_run_backwards():
    assert len(set(long_range.TEMPLATES)) == 30
    for index, text in enumerate(long_range.TEMPLATES):
        assert long_range.scenes_of(index) == index // 10 + 1
        assert ("one", "two", "three")[index // 10] in text
        partner = long_range.REVERSED[index]
        assert long_range.REVERSED[partner] == index != partner
        assert long_range.TEMPLATES[partner].split(",")[1] == text.split(",")[1]
    for index in (0, 14, 28):
        forward, backward = (
            long_range.render_film(long_range.plan_clip(one, np.random.default_rng(5)), HEIGHT, HEIGHT)
            for one in (index, index + 1)
        )
        np.testing.assert_array_equal(forward[::-1], backward)
        np.testing.assert_array_equal(
            forward, long_range.render_film(long_range.plan_clip(index, np.random.default_rng(5)), HEIGHT, HEIGHT)
        )


@pytest.mark.parametrize("scenes", [1, 2, 3])
def test_only_frames_as_far_apart_as_there_are_scenes_show_the_motion(scenes):
    """The view pans one way, the content moves the other; frames of different scenes have nothing in common."""
    ways = [(0, 1), (0, -1), (1, 0), (-1, 0)]  # of the content: down, right
    for distance in range(1, REACH + 1):
        found = [readings(10 * (scenes - 1) + motion, distance) for motion in range(4)]
        likeness = np.concatenate([one[:, 0] for one in found])
        along = np.concatenate([one[:, 1:] @ way for one, way in zip(found, ways, strict=True)])  # pixels
        if distance == scenes:
            assert likeness.min() > 0.5
            assert along.min() > 2
        elif distance % scenes:
            assert likeness.max() < 0.5
            assert abs(along.mean()) < 3 * along.std() / np.sqrt(len(along))


@pytest.mark.parametrize("scenes", [1, 2, 3])
def test_a_roll_turns_the_content_the_other_way(scenes):
    for motion, sign in ((8, 1), (9, -1)):
        frames = sampled(clip(10 * (scenes - 1) + motion))
        left = shift(
            frames[0, 12:36, :24].repeat(2, 0).repeat(2, 1), frames[scenes, 12:36, :24].repeat(2, 0).repeat(2, 1)
        )
        right = shift(
            frames[0, 12:36, 24:].repeat(2, 0).repeat(2, 1), frames[scenes, 12:36, 24:].repeat(2, 0).repeat(2, 1)
        )
        assert sign * (left[1] - right[1]) > 2  # the view clockwise: its content anticlockwise, down on the left


def test_single_frames_are_alike_in_every_class():
    """Mean colour, contrast and sharpness along both axes: classes within 4.5 standard errors of all.

    Of pans of one and of three scenes and rolls of each; the partners have the same frames (see above).
    """
    rows = {}
    for index in (0, 6, 8, 20, 26, 28):
        for seed in range(16):
            frames = clip(index, seed)[1::2].astype(float)
            sharp = [np.abs(np.diff(frames, axis=axis)).mean((1, 2, 3)) for axis in (1, 2)]
            values = np.array([*frames.mean((1, 2)).T, frames.std((1, 2, 3)), *sharp])  # (6, 8)
            rows.setdefault(index, []).append(values.mean(1))
    everything = np.mean([np.mean(part, 0) for part in rows.values()], 0)
    for index, part in rows.items():
        # Few scenes make a clip's mean stray further: the error is that of the class itself.
        off = np.abs(np.mean(part, 0) - everything) / (np.std(part, 0, ddof=1) / np.sqrt(len(part)))
        assert off.max() < 4.5, (long_range.TEMPLATES[index], off)


def test_a_set_is_written_frame_by_frame_and_does_not_pass_for_the_other(tmp_path):
    """Coded from its neighbours, a frame would show whether they are like it; each is a key frame."""
    tiny = {"train_per_class": 1, "validation_per_class": 1, "frames": 8, "height": 32, "width": 32, "progress": False}
    root = tmp_path / "set"
    made = prepare(root, variant="long_range", **tiny)
    assert (made["classes"], made["train"], made["validation"], made["written"]) == (30, 30, 30, 60)
    assert prepare(root, variant="long_range", **tiny)["written"] == 0
    with av.open(str(root / "20bn-something-something-v2" / "25.webm")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert len(packets) == 8
    assert all(packet.is_keyframe for packet in packets)
    with pytest.raises(ValueError, match=r"holds .*'variant': 'long_range'"):
        prepare(root, **tiny)
    with pytest.raises(ValueError, match=r"variant must be one of motion, long_range\. Received variant='longer'"):
        prepare(tmp_path / "new", variant="longer", **tiny)
    with pytest.raises(ValueError, match=r"frames must be a multiple of 8\. Received: frames=12"):
        prepare(tmp_path / "new", variant="long_range", **{**tiny, "frames": 12})
    assert not (tmp_path / "new").exists()
