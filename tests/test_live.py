"""A stream that is followed: which frames are dropped and which the model gets, to the frame, without a real clock."""

import json
import os
import threading
from types import SimpleNamespace

import av
import keras
import numpy as np
import pytest
from conftest import square_clip, tiny_values, write_video
from untrained import LABELS

from keras_stss.cli import main
from keras_stss.config import ConfigError, dump_config, parse_config
from keras_stss.data.augment import center_view
from keras_stss.data.frames import ClipError
from keras_stss.live import Feed, Figures, Frame, LiveModel, Overlay, Result, Source, Spacing, VideoWriter, spacing_of
from keras_stss.live import watch as follow
from keras_stss.live.feed import Waiting, timed
from keras_stss.models import build_model, load_model

PICTURE = np.zeros((32, 40, 3), np.uint8)


class Clock:
    """Time that passes only where something takes time."""

    def __init__(self):
        self.seconds = 0.0

    def now(self):
        return self.seconds

    def wait(self, seconds):
        assert seconds > 0
        self.seconds += seconds


class Arriving:
    """A feed whose frames arrive by a fake clock, one a second."""

    def __init__(self, clock, count):
        self.clock, self.waiting = clock, Waiting(drops=True)
        self.coming = [Frame(number, float(number), float(number), PICTURE) for number in range(count)]

    @property
    def dropped(self):
        return self.waiting.dropped

    def take(self):
        self.clock.seconds = max(self.clock.seconds, self.coming[0].arrival if self.coming else 0)
        while self.coming and self.coming[0].arrival <= self.clock.seconds:
            self.waiting.put(self.coming.pop(0))
        return self.waiting.take()


def frames_of(count, step=1.0):
    return [Frame(number, number * step, 0.0, PICTURE) for number in range(count)]


# --- the scheduler ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("takes", "wanted", "dropped", "missed", "latencies"),
    [
        # 0 keeps it busy until 2.5; of 1 and 2 the newer is taken, until 5; of 3, 4 and 5 the last; ...
        (2.5, [0, 2, 5, 7, 9], 5, 5, [2.5, 3.0, 2.5, 3.0, 3.5]),
        (0.25, list(range(10)), 0, 0, [0.25] * 10),
    ],
)
def test_a_slow_model_drops_frames_and_never_lags(takes, wanted, dropped, missed, latencies):
    clock, seen, shown, spacing = Clock(), [], [], Spacing(seconds=1.0)

    def model(picture):
        clock.wait(takes)
        seen.append(feed.dropped)
        return np.zeros(3)

    feed = Arriving(clock, 10)
    figures = follow(feed, model, spacing, [lambda frame, result: shown.append((frame, result))], clock.now)
    assert [frame.number for frame, _ in shown] == wanted
    assert [result.latency for _, result in shown] == latencies
    found = figures.summary()
    assert (found["frames"], found["dropped"], found["predictions"]) == (10, dropped, len(wanted))
    assert (found["missed"], spacing.missed) == (missed, missed)
    assert found["latency_median_ms"] == 1000 * np.median(latencies)
    assert found["latency_95th_ms"] == pytest.approx(1000 * np.percentile(latencies, 95))
    assert found["frame_rate"] == 1.0 and found["prediction_rate"] == pytest.approx((len(wanted) - 1) / 9, abs=1e-3)


def test_what_is_drawn_counts_as_time_and_an_interrupt_leaves_right_figures():
    clock, figures = Clock(), Figures(Spacing(frames=2))

    def viewer(frame, result):
        clock.wait(1.5)
        assert result.number == {0: 0, 1: 0, 3: 1, 4: 2, 6: 3}[frame.number]
        if frame.number == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(Arriving(clock, 9), lambda _: np.zeros(3), figures.spacing, [viewer], clock.now, figures=figures)
    assert (figures.taken, figures.dropped, figures.predictions, figures.spacing.missed) == (5, 2, 4, 0)


def test_the_model_gets_frames_on_a_grid():
    def due(spacing, frames):
        return [frame.number for frame in frames if spacing.is_due(frame)], spacing.missed

    assert due(Spacing(seconds=2.5), frames_of(11)) == ([0, 3, 5, 8, 10], 0)
    assert due(Spacing(frames=3), frames_of(10)) == ([0, 3, 6, 9], 0)
    assert due(Spacing(seconds=0.1), frames_of(101, 0.1)) == (list(range(101)), 0)
    # Of a camera that is slower than the clips were, every frame, and two of three are missed.
    assert due(Spacing(seconds=1 / 3), frames_of(4)) == ([0, 1, 2, 3], 6)
    for wrong in ({}, {"seconds": 0}, {"seconds": 1, "frames": 1}, {"frames": -1}):
        with pytest.raises(ValueError, match="one of seconds and frames"):
            Spacing(**wrong)


def test_a_file_is_played_at_its_rate_and_catches_up():
    """Decoding the second frame takes four seconds; the next ones are late, less and less, as it skips."""
    clock, skipped = Clock(), []
    costs = [0.25, 4.0, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25]

    def pictures():
        for number, cost in enumerate(costs):
            clock.wait(cost)
            skipped.append(source.skip)
            yield number * 1.0, PICTURE

    source = SimpleNamespace(frames=pictures, is_live=False, skip="DEFAULT")
    found = list(timed(source, clock.now, clock.wait))
    assert [frame.arrival for frame in found] == [0.25 + number for number in range(8)]  # late ones count as late
    assert skipped == ["DEFAULT", "DEFAULT", "NONKEY", "NONKEY", "NONREF", "NONREF", "DEFAULT", "DEFAULT"]
    assert clock.seconds == 7.25
    clock, source = Clock(), SimpleNamespace(frames=pictures, is_live=True, skip="DEFAULT")
    found = list(timed(source, clock.now, clock.wait))
    assert [frame.time for frame in found] == (np.cumsum(costs) - 0.25).tolist()  # of a camera: as they came
    clock, source = Clock(), SimpleNamespace(frames=pictures, is_live=False, skip="DEFAULT")
    assert [frame.time for frame in timed(source, clock.now, clock.wait, realtime=False)] == list(range(8))
    assert clock.seconds == sum(costs)


def test_a_thread_keeps_the_newest_frame_or_all():
    went_on, all_put = threading.Event(), threading.Event()

    def gated(_):
        yield from frames_of(5)
        all_put.set()
        went_on.wait(60)
        yield Frame(5, 5.0, 0.0, PICTURE)
        raise ClipError("broke off")

    feed = Feed(gated)
    assert all_put.wait(60)
    assert (feed.take().number, feed.dropped) == (4, 4)
    went_on.set()
    assert feed.take().number == 5
    with pytest.raises(ClipError, match="broke off"):
        feed.take()
    assert feed.close(60)
    feed = Feed(lambda _: iter(frames_of(50)), drops=False)
    assert [feed.take().number for _ in range(50)] == list(range(50))
    assert feed.take() is None and feed.dropped == 0
    full = Feed(lambda _: iter(frames_of(50)), drops=False)
    assert full.close(60)  # while it waits for room


# --- sources ----------------------------------------------------------------------------------------------------------


def write_stream(path, clip, rate=25, rotation=None, times=None, codec="mpeg4"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], "yuv420p"
        stream.codec_context.gop_size = 4
        if rotation:
            stream.set_display_rotation(rotation)
        for number, image in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def opened(path):
    source = Source(str(path))
    found = list(source.frames())
    source.close()
    return found, source


def test_frames_have_their_times_and_are_turned(tmp_path):
    clip = square_clip(0, 1, frames=6)
    found, source = opened(write_stream(tmp_path / "a.mp4", clip, times=[3, 4, 8, 9, 20, 21]))
    assert [seconds for seconds, _ in found] == pytest.approx([0, 0.04, 0.2, 0.24, 0.68, 0.72])
    assert not source.is_live and source.promised == 6
    np.testing.assert_allclose(np.mean([picture for _, picture in found]), clip.mean(), atol=4)
    turned, _ = opened(write_stream(tmp_path / "b.mp4", clip, rotation=90))
    assert {picture.shape for _, picture in turned} == {(40, 32, 3)}


def test_a_stream_may_change_its_size_be_damaged_and_end_early(tmp_path):
    for name, height in (("a", 32), ("b", 48)):
        write_stream(tmp_path / f"{name}.ts", square_clip(0, 1, 8, height, 64), codec="libx264")
    both = (tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes()
    (tmp_path / "c.ts").write_bytes(both)
    found, _ = opened(tmp_path / "c.ts")
    assert [picture.shape[0] for _, picture in found] == [32] * 8 + [48] * 8
    assert [seconds for seconds, _ in found] == sorted(seconds for seconds, _ in found)
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    whole = write_stream(tmp_path / "whole.ts", noise, codec="libx264").read_bytes()
    middle = len(whole) // 2
    (tmp_path / "damaged.ts").write_bytes(whole[:middle] + bytes(2000) + whole[middle + 2000 :])
    found, _ = opened(tmp_path / "damaged.ts")
    assert 30 <= len(found) <= 40
    assert found[-1][0] == pytest.approx(39 / 25, abs=0.01)
    (tmp_path / "cut.ts").write_bytes(whole[:middle])
    assert 15 <= len(opened(tmp_path / "cut.ts")[0]) <= 25
    whole = write_stream(tmp_path / "whole.mkv", noise, codec="libx264").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])  # which says how long it was
    shown = []
    with pytest.raises(ClipError, match="ends before its header says"):
        shown.extend(Source(str(tmp_path / "cut.mkv")).frames())
    assert 15 <= len(shown) <= 25


def test_names_that_look_like_protocols(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_stream(tmp_path / "12:30.mp4", square_clip(0, 1, frames=4))
    assert len(opened("12:30.mp4")[0]) == 4
    writer = VideoWriter("12:31.mp4", 32, 40)
    writer.add(PICTURE, 0.0)
    writer.close()
    assert len(opened("12:31.mp4")[0]) == 1


def test_a_pipe_that_nobody_reads_any_more():
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as pipe:
        writer = VideoWriter(pipe, 32, 40)
        os.close(reading)
        with pytest.raises(BrokenPipeError):
            _ = [writer.add(PICTURE, number / 25) for number in range(999)]
        writer.close()  # without another error


def test_what_cannot_be_opened_is_told(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video " * 99)
    told = {
        tmp_path / "empty.mp4": "empty file",
        tmp_path / "text.mp4": "not a video",
        tmp_path: "is a folder",
        tmp_path / "none.mp4": "no such file, nor a camera",
        "v4l2:/dev/no-camera": "no such file or directory",
        "lavfi:nothing-of-this-name": r"\w",
    }
    for name, reason in told.items():
        with pytest.raises(ClipError, match=reason):
            Source(str(name))
    source = Source("lavfi:testsrc=size=64x48:rate=25:duration=0.2")
    assert source.is_live and [picture.shape for _, picture in source.frames()] == [(48, 64, 3)] * 5


# --- pictures ---------------------------------------------------------------------------------------------------------


def result(logits, number=0, latency=0.012):
    return Result(number, 0.0, np.asarray(logits, float), latency, 0.01)


def test_results_are_drawn_over_frames_of_one_size(caplog):
    labels = ["Pushing something", "Ходьба, بیٹھنا", "跑步", "x" * 400]
    overlay = Overlay(labels)
    plain = overlay(PICTURE, None)
    assert plain.shape == (256, 320, 3) and not plain.any()  # enlarged, so that letters can be read
    first = overlay(PICTURE, result([3, 2, 1, 0]))
    rows = np.flatnonzero((first != plain).any((1, 2)))
    assert rows.min() > 128 and first[rows].max() > 200
    second = overlay(PICTURE, result([0, 3, 2, 1], 1))
    assert (first != second).any()
    sure, unsure = (overlay(PICTURE, result(logits, 2)) for logits in ([9, 0, 0, 0], [0.1, 0, 0, 0]))
    bars = [(picture[..., 2].astype(int) - picture[..., 0] > 100).sum() for picture in (sure, unsure)]
    assert bars[0] > 2 * bars[1] > 0
    for shape in ((100, 40, 3), (32, 400, 3)):
        fitted = overlay(np.full(shape, 255, np.uint8), None)
        assert fitted.shape == plain.shape and fitted[128, 160].min() == 255 and not fitted[0, 0].any()
    assert overlay(PICTURE, result([np.nan] * 4, 3)).shape == plain.shape
    overlay = Overlay(["Ж跑ᚠ𐤀𓀀𒀀"])  # so many scripts are in no font
    assert overlay(PICTURE, result([0.0])).any()
    assert len([line for line in caplog.messages if "no font of this machine" in line and "ᚠ" in line]) == 1


def test_a_video_grows_frame_by_frame(tmp_path):
    pictures = [np.full((48, 64, 3), value, np.uint8) for value in range(20, 220, 2)]
    times = [number * 0.04 + (number > 50) for number in range(100)]
    writer = VideoWriter(tmp_path / "v.mp4", 48, 64)
    for number, (picture, seconds) in enumerate(zip(pictures, times)):
        if number == 90:  # as a kill would leave it
            (tmp_path / "killed.mp4").write_bytes((tmp_path / "v.mp4").read_bytes())
        writer.add(picture, seconds)
    writer.close()
    writer.close()
    found, _ = opened(tmp_path / "v.mp4")
    assert [seconds for seconds, _ in found] == pytest.approx(times, abs=1e-3)
    np.testing.assert_allclose([picture.mean() for _, picture in found], range(20, 220, 2), atol=3)
    assert len(opened(tmp_path / "killed.mp4")[0]) >= 30
    for name, reason in {"v.mp4": "is there already", "v.gif": "are written as", "no/v.mp4": "no folder"}.items():
        with pytest.raises(ConfigError, match=reason):
            VideoWriter(tmp_path / name, 48, 64)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["windowed", "causal"])
def run(request, clip_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    values = tiny_values(clip_set, folder)
    values["model"]["causal"] = request.param
    config = parse_config(values)
    keras.utils.set_random_seed(1)
    build_model(config, classes=3).save(folder / "best.keras")
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "labels.json").write_text(json.dumps(LABELS))
    return folder, config


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "v.mp4", square_clip(1, 5, frames=12))


def stream(capsys, run, source, *arguments, code=0):
    assert main(["predict", str(run), "--stream", str(source), *map(str, arguments)]) == code
    return capsys.readouterr()


def test_every_frame_of_a_file_through_the_door(run, video, tmp_path, capsys, monkeypatch):
    folder, config = run
    out = tmp_path / "out.mp4"
    lines = stream(capsys, folder, video, "--no-realtime", "--stride", 2, "--json", "--top", 9, "--out", out).out
    *rows, last = [json.loads(line) for line in lines.splitlines()]
    model = LiveModel(load_model(folder), config)
    pictures = [picture for _, picture in opened(video)[0]]
    assert [row["frame"] for row in rows] == [0, 2, 4, 6, 8, 10]
    for row in rows:
        logits = model(pictures[row["frame"]])
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert {each["label"]: each["probability"] for each in row["top"]} == pytest.approx(
            dict(zip(LABELS, shares.tolist())), rel=1e-4
        )
    clip = center_view(np.stack(pictures[:8:2]), config.data.resize, config.data.crop)[None]
    if config.model.causal:  # the mean over a clip's frames is the model's own
        model.reset()
        own = [model(picture) for picture in pictures[:8:2]][-1]
        np.testing.assert_allclose(own, load_model(folder)(clip)[0], rtol=1e-4, atol=1e-5)
    summary = last["summary"]
    assert (summary["frames"], summary["dropped"], summary["predictions"], summary["missed"]) == (12, 0, 6, 0)
    assert summary["latency_median_ms"] is None and summary["model_median_ms"] > 0
    drawn, _ = opened(out)
    assert [round(12 * seconds) for seconds, _ in drawn] == list(range(12))
    assert drawn[0][1].shape == (256, 320, 3)

    calls = iter(range(9))  # the first is before the stream, lest the first frame be late

    def interrupted(self, picture, call=LiveModel.__call__):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return call(self, picture)

    monkeypatch.setattr(LiveModel, "__call__", interrupted)
    said = stream(capsys, folder, video, "--no-realtime", "--stride", 2, "--out", tmp_path / "cut.mkv").out
    assert "2 predictions" in said and "no latency" in said
    assert len(opened(tmp_path / "cut.mkv")[0]) == 4
    calls = iter([0, 3])  # before there is any prediction
    assert "0 predictions" in stream(capsys, folder, video, "--no-realtime").out


def test_a_live_stream_says_how_late_it_is_and_refusals(run, video, tmp_path, capsys):
    folder, config = run
    if config.model.causal:
        pytest.skip("the other model shows it")
    source = "lavfi:testsrc2=size=64x48:rate=25,realtime"
    said = stream(capsys, folder, source, "--seconds", 0.5, "--rate", 10)
    assert "from arrival to result: " in said.out and "95th percentile" in said.out
    assert "every 0.1 s (--rate)" in said.err
    # 4 frames of clips of 8 frames at 12 a second
    assert "every 0.167 s (as of 4 frames of 0.667 s" in stream(capsys, folder, video, "--seconds", 0.01).err
    spacing, why = spacing_of(config.data.model_copy(update={"sampling": "dense", "frames": 16}))
    assert spacing.frames == 4 and "dense" in why
    spacing, why = spacing_of(config.data.model_copy(update={"root": str(tmp_path)}))
    assert spacing.seconds == 1.0 and "not there" in why
    (tmp_path / "there.mp4").write_bytes(b"x")
    refused = {
        (source, "--no-realtime"): "is for files",
        (video, "--out", tmp_path / "there.mp4"): "is there already",
        (tmp_path / "none.mp4",): "none.mp4: no such file, nor a camera",
        (video, "--rate", 0): "must be a number above 0",
        (video, "--rate", "inf"): "must be a number above 0",
    }
    for arguments, reason in refused.items():
        assert reason in stream(capsys, folder, *arguments, code=2).err
    spoilt = load_model(folder)
    spoilt.get_layer("logits").bias.assign([float("nan"), 0.0, 0.0])
    with pytest.raises(ConfigError, match="scores that are no numbers"):
        LiveModel(spoilt, config)
    for arguments in (["--rate", "1", "--stride", "1"], ["--json", "--out", "-"]):
        with pytest.raises(SystemExit):
            main(["predict", str(folder), "--stream", str(video), *arguments])
