"""The embedded data set: its layout, its repeatability, and that only motion tells its classes."""

import dataclasses
import hashlib
import json

import av
import numpy as np
import pytest

from keras_stss.data import synthetic
from keras_stss.data.synthetic import write

SIZES = {"train_per_class": 2, "validation_per_class": 1, "frames": 9, "height": 48, "width": 64}
TINY = {**SIZES, "progress": False}


def rng(*seed):
    return np.random.default_rng(seed)


def digests(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def subject_track(template, seed, frames=24):
    """Where the subject's pixels are: (centres (frames, 2) in frame heights, visible areas (frames,)).

    Measured on pixels alone: a clip less the same clip without its subject. Frames in which fewer than ten
    pixels of it are seen have NaN for a centre.
    """
    scene = synthetic.plan_clip(template, rng(seed), frames)
    without = tuple(thing for thing in scene.things if thing is not scene.subject)
    clip = synthetic.render_scene(scene).astype(int)
    empty = synthetic.render_scene(dataclasses.replace(scene, things=without)).astype(int)
    mask = np.abs(clip - empty).sum(-1) > 40
    area = mask.sum((1, 2))
    y, x = np.mgrid[: mask.shape[1], : mask.shape[2]]
    with np.errstate(invalid="ignore", divide="ignore"):
        centres = np.stack([(mask * x).sum((1, 2)) / area, (mask * y).sum((1, 2)) / area], 1)
    centres[area < 10] = np.nan
    return centres / mask.shape[1], area


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic") / "set"
    return root, synthetic.prepare(root, **TINY, workers=2)


def test_layout_and_annotation_are_those_of_something_something(tiny):
    root, summary = tiny
    assert (summary["train"], summary["validation"], summary["written"]) == (24, 12, 36)
    assert {path.name for path in root.iterdir()} == {
        "20bn-something-something-v2",
        "something-something-v2-train.json",
        "something-something-v2-validation.json",
        "something-something-v2-labels.json",
        "synthetic.json",
    }
    labels = json.loads((root / "something-something-v2-labels.json").read_text())
    plain = [text.replace("[something]", "something") for text in synthetic.TEMPLATES]
    assert labels == {text: str(index) for index, text in enumerate(plain)}
    numbers = []
    for split, per_class in (("train", 2), ("validation", 1)):
        rows = json.loads((root / f"something-something-v2-{split}.json").read_text())
        assert sorted(row["template"] for row in rows) == sorted(synthetic.TEMPLATES * per_class)
        for row in rows:
            assert set(row) == {"id", "label", "template", "placeholders"}
            assert row["template"].count("[something]") == len(row["placeholders"])
            label = row["template"]
            for phrase in row["placeholders"]:
                label = label.replace("[something]", phrase, 1)
            assert row["label"] == label.lower()
            assert "[" not in label
            numbers.append(row["id"])
    videos = {path.name for path in (root / "20bn-something-something-v2").iterdir()}
    assert videos == {f"{number}.webm" for number in numbers}
    assert len(numbers) == 36


def test_every_video_is_a_readable_vp9_webm_of_the_right_class(tiny):
    root, _ = tiny
    rows = json.loads((root / "something-something-v2-train.json").read_text())
    rows += json.loads((root / "something-something-v2-validation.json").read_text())
    for row in rows:
        with av.open(str(root / "20bn-something-something-v2" / f"{row['id']}.webm")) as container:
            stream = container.streams.video[0]
            assert "webm" in container.format.name
            assert stream.codec_context.name in ("vp9", "libvpx-vp9")
            assert stream.average_rate == 12
            clip = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        assert clip.shape == (9, 48, 64, 3)
        number = int(row["id"]) - 1
        source = (0, 0, number) if number < 24 else (0, 1, number - 24)
        drawn = synthetic.render_clip(row["template"], rng(*source), 9, 48, 64)
        assert np.abs(clip.astype(int) - drawn).mean() < 12  # what the codec loses; another clip is ~60 away


def test_number_of_workers_does_not_change_a_byte_and_the_seed_does(tiny, tmp_path):
    root, _ = tiny
    synthetic.prepare(tmp_path / "one", **TINY, workers=1)
    assert digests(tmp_path / "one") == digests(root)
    synthetic.prepare(tmp_path / "other", **TINY, seed=1)
    first, other = digests(root), digests(tmp_path / "other")
    assert first.keys() == other.keys()
    assert {name for name in first if first[name] == other[name]} == {"something-something-v2-labels.json"}


def test_a_rerun_writes_nothing_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    encode, calls = synthetic.encode_webm, []

    def interrupted(path, clip, apart):
        calls.append(path)
        if len(calls) == 10:
            raise KeyboardInterrupt
        encode(path, clip, apart)

    monkeypatch.setattr(write, "encode_webm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.prepare(tmp_path, **TINY, workers=1)
    assert not (tmp_path / "something-something-v2-train.json").exists()
    assert not list(tmp_path.rglob(".*"))
    left = len(list(tmp_path.rglob("*.webm")))
    assert 9 <= left < 36

    monkeypatch.setattr(write, "encode_webm", encode)
    assert synthetic.prepare(tmp_path, **TINY)["written"] == 36 - left
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert synthetic.prepare(tmp_path, **TINY)["written"] == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_failed_encoding_leaves_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    clip = synthetic.render_clip(0, rng(0), 8, 48, 64)
    monkeypatch.setattr(write.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        synthetic.encode_webm(tmp_path / "1.webm", clip)
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_holds_another_set_is_refused(tiny, tmp_path):
    root, _ = tiny
    before = digests(root)
    with pytest.raises(ValueError, match=r"Received .*'frames': 10.* holds .*'frames': 9"):
        synthetic.prepare(root, **{**TINY, "frames": 10})
    with pytest.raises(ValueError, match="'seed': 5"):
        synthetic.prepare(root, **TINY, seed=5)
    assert digests(root) == before
    (tmp_path / "something-something-v2-labels.json").write_text("{}")
    with pytest.raises(ValueError, match=r"Received root=.* holds .*labels.json"):
        synthetic.prepare(tmp_path, **TINY)
    assert (tmp_path / "something-something-v2-labels.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("name", "value"),
    [("frames", 7), ("height", 16), ("train_per_class", 0), ("seed", -1), ("width", 64.5), ("workers", -2)],
)
def test_wrong_arguments_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"Received {name}={value}"):
        synthetic.prepare(tmp_path / "set", **{**TINY, name: value})
    assert not (tmp_path / "set").exists()


def test_templates():
    assert len(set(synthetic.TEMPLATES)) == 12
    assert all(synthetic.REVERSED[other] == index != other for index, other in synthetic.REVERSED.items())
    for index, text in enumerate(synthetic.TEMPLATES):
        for name in (index, np.int64(index), text, text.replace("[something]", "something")):
            assert synthetic.template_index(name) == index
    for wrong in (12, -1, "moving sideways"):
        with pytest.raises(ValueError, match=f"Received template={wrong!r}"):
            synthetic.render_clip(wrong, rng(0))


def test_render_clip_depends_on_its_generator_alone():
    first = synthetic.render_clip(3, rng(1), 8, 48, 64)
    assert first.shape == (8, 48, 64, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, synthetic.render_clip(synthetic.TEMPLATES[3], rng(1), 8, 48, 64))
    assert np.abs(first.astype(int) - synthetic.render_clip(3, rng(2), 8, 48, 64)).mean() > 5


@pytest.mark.parametrize(("index", "other"), [(0, 1), (2, 3), (4, 5), (6, 7)])
def test_a_reversal_pair_shows_the_same_frames_in_opposite_order(index, other):
    forward = synthetic.render_clip(index, rng(4), 10, 48, 64)
    np.testing.assert_array_equal(forward[::-1], synthetic.render_clip(other, rng(4), 10, 48, 64))
    assert np.abs(forward[0].astype(int) - forward[-1]).mean() > 1


def test_subjects_look_the_same_in_every_class():
    """Mean place, size and colour of the subject, over 150 clips a class, within 4 standard errors."""
    rows = []
    for index in range(12):
        for clip in range(150):
            subject = synthetic.plan_clip(index, rng(9, index, clip)).subject
            moment = clip % 24
            rows.append([index, subject.x[moment], subject.y[moment], subject.size[moment], *subject.rgb])
    rows = np.array(rows)
    for index in range(12):
        part = rows[rows[:, 0] == index, 1:]
        error = rows[:, 1:].std(0) / np.sqrt(len(part))
        off = np.abs(part.mean(0) - rows[:, 1:].mean(0)) / error
        assert off.max() < 4, (synthetic.TEMPLATES[index], off)


@pytest.mark.parametrize("seed", range(3))
def test_straight_motions_go_where_their_label_says(seed):
    for index, axis, sign in ((0, 0, 1), (1, 0, -1), (2, 1, -1), (3, 1, 1)):
        centres, _ = subject_track(index, seed)
        move = centres[-1] - centres[0]
        assert move[axis] * sign > 0.3
        assert abs(move[1 - axis]) < 0.12
        assert (np.diff(centres[:, axis]) * sign > -0.03).all()


@pytest.mark.parametrize("seed", range(3))
def test_scale_and_circle_follow_their_label(seed):
    for index, sign in ((4, 1), (5, -1)):
        centres, area = subject_track(index, seed)
        assert sign * np.log(area[-1] / area[0]) > np.log(2)
        assert np.abs(centres - centres[0]).max() < 0.2
    for index, sign in ((6, 1), (7, -1)):
        centres, _ = subject_track(index, seed)
        # The turn of the direction of travel, where there is travel; y points down, so clockwise grows.
        steps = np.diff(centres[::3], axis=0)
        steps = steps[np.linalg.norm(steps, axis=1) > 0.05]
        turn = np.ptp(np.unwrap(np.arctan2(steps[:, 1], steps[:, 0])) * sign)
        crosses = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]
        assert turn > 2.5
        assert (crosses * sign > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_other_motions(seed):
    steps = {index: np.diff(subject_track(index, seed)[0], axis=0) for index in (8, 0)}
    assert np.abs(steps[8]).mean(0).min() > 0.01 > np.abs(steps[0][:, 1]).mean()

    centres, area = subject_track(9, seed)
    assert area.min() < 0.1 * max(area[0], area[-1])
    assert min(area[0], area[-1]) > 0.5 * area.max()
    assert np.linalg.norm(centres[-1] - centres[0]) > 0.3

    centres, _ = subject_track(10, seed)
    away = np.linalg.norm(centres - centres[0], axis=1)
    assert away[-1] < 0.1
    assert away.max() > 0.3

    centres, _ = subject_track(11, seed)
    ends = centres[-1] - centres[0]
    assert np.linalg.norm(ends) > 0.25
    assert np.linalg.norm(centres[-1] - centres[-5]) < 0.06
