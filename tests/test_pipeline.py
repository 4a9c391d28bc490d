import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import write_video
from streams import LABELS, assert_same, batches, clip_of, config, with_broken, write_clips

from keras_stss.data.annotations import Clip, DataError
from keras_stss.data.decode import ClipError
from keras_stss.data.pipeline import (
    TooManyUnreadable,
    Unreadable,
    evaluation_stream,
    next_position,
    read_clip,
    training_stream,
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("set"))


class TestTraining:
    def stream(self, clips, batch_size=3, seed=5, start=0, registry=None, **values):
        return training_stream(clips, LABELS, config(**values), batch_size, seed, start, registry)

    def test_shapes_and_types(self, clips):
        spec = self.stream(clips).element_spec
        assert spec["frames"] == tf.TensorSpec((3, 4, 24, 24, 3), tf.uint8)
        assert spec["label"] == tf.TensorSpec((3,), tf.int32)
        assert spec["position"] == tf.TensorSpec((3,), tf.int64)

    def test_every_epoch_is_a_new_permutation(self, clips):
        (batch,) = batches(self.stream(clips, batch_size=28), 1)
        assert batch["position"].tolist() == list(range(28))
        order = np.reshape(clip_of(batch["frames"]), (4, 7))
        assert all(sorted(epoch) == list(range(7)) for epoch in order.tolist())
        assert len({tuple(epoch) for epoch in order.tolist()}) > 2
        assert (batch["label"] == order.ravel() % 2).all()

    def test_frames_rise_and_differ_between_epochs(self, clips):
        (batch,) = batches(self.stream(clips[:1], batch_size=6), 1)
        frames = np.round((batch["frames"][..., 1].mean((2, 3)) - 30) / 12).astype(int)
        assert (np.diff(frames) >= 0).all()
        assert (frames // 4 == np.arange(4)).all()
        assert len(np.unique(frames, axis=0)) > 2

    def test_same_with_any_number_of_workers(self, clips):
        first = batches(self.stream(clips, workers=1), 6)
        assert_same(first, batches(self.stream(clips, workers=2), 6))
        assert_same(first, batches(self.stream(clips, workers=7), 6))

    def test_seeds_differ(self, clips):
        first, second = (batches(self.stream(clips, batch_size=14, seed=seed), 1)[0] for seed in (1, 2))
        assert clip_of(first["frames"]) != clip_of(second["frames"])

    @pytest.mark.parametrize("broken", [(), (2,)])
    def test_continues_where_it_was(self, clips, tmp_path, broken):
        clips = with_broken(clips, tmp_path, *broken)
        whole = batches(self.stream(clips, max_unreadable=0.5), 8)
        start = next_position(0, whole[3]["position"], 3)
        assert_same(whole[4:], batches(self.stream(clips, start=start, max_unreadable=0.5), 4))

    def test_mirrors_only_where_the_label_allows(self, clips):
        (batch,) = batches(self.stream(clips, batch_size=56, scales=(1.0,)), 1)
        blue = batch["frames"][..., 2].astype(float)
        is_mirrored = blue[..., :4].mean((1, 2, 3)) > blue[..., -4:].mean((1, 2, 3))
        assert not is_mirrored[batch["label"] == 1].any()
        assert 0.2 < is_mirrored[batch["label"] == 0].mean() < 0.8
        (batch,) = batches(self.stream(clips, batch_size=28, scales=(1.0,), flip=False), 1)
        blue = batch["frames"][..., 2].astype(float)
        assert not (blue[..., :4].mean((1, 2, 3)) > blue[..., -4:].mean((1, 2, 3))).any()

    def test_unreadable_clip_is_left_out_and_told_once(self, clips, tmp_path, caplog):
        clips = with_broken(clips, tmp_path, 4)
        registry = Unreadable(clips, 0.2)
        found = batches(self.stream(clips, batch_size=6, registry=registry), 3)
        assert [sorted(clip_of(batch["frames"])) for batch in found] == [[0, 1, 2, 3, 5, 6]] * 3
        assert found[0]["position"].tolist() != list(range(6)) or found[1]["position"][0] == 7
        assert registry.reasons == {clips[4].path: "empty file (zero bytes)"}
        assert caplog.text.count(clips[4].path) == 1 and "zero bytes" in caplog.text
        registry.check()

    @pytest.mark.parametrize(("numbers", "share"), [((1, 4), 0.2), (range(7), 1.0)])
    def test_too_many_unreadable(self, clips, tmp_path, numbers, share):
        clips = with_broken(clips, tmp_path, *numbers)
        registry = Unreadable(clips, share)
        with pytest.raises(TooManyUnreadable, match="clips cannot be read"), registry.explained():
            batches(self.stream(clips, registry=registry, max_unreadable=share), 20)

    def test_no_clip(self):
        with pytest.raises(DataError, match="no training clip"):
            self.stream([])

    def test_memory_stays_flat(self, clips):
        """A leak of a clip's frames would make 19 kB a clip: 30 MB in these."""
        stream = iter(self.stream(clips, batch_size=4))
        used = []
        for number in range(500):
            next(stream)
            if number in (99, 499):
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                used.append(pages * os.sysconf("SC_PAGE_SIZE"))
        assert used[1] - used[0] < 10e6

    def test_interpreter_ends_while_a_stream_is_open(self, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (60, 240, 320, 3), dtype=np.uint8)
        path = str(write_video(tmp_path / "slow.mp4", noise))
        program = f"""
            from keras_stss.config import DataConfig
            from keras_stss.data.annotations import Clip
            from keras_stss.data.pipeline import training_stream
            data = DataConfig(format="clips", root=".", annotations="c", frames=16, resize=256, crop=224, workers=4)
            stream = iter(training_stream([Clip("0", {path!r}, 0, "video")], ["x"], data, 8, 0))
            next(stream)
            print("done")
        """
        command = [sys.executable, "-c", textwrap.dedent(program)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr


class TestEvaluation:
    def test_every_clip_once_in_order(self, clips):
        stream = evaluation_stream(clips, config(), 3)
        assert stream.element_spec["frames"] == tf.TensorSpec((3, 4, 24, 24, 3), tf.uint8)
        assert stream.element_spec["weight"] == tf.TensorSpec((3,), tf.float32)
        found = batches(stream, -1)
        assert [batch["index"].tolist() for batch in found] == [[0, 1, 2], [3, 4, 5], [6, -1, -1]]
        assert [batch["weight"].tolist() for batch in found] == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]
        assert found[2]["label"].tolist() == [0, 0, 0]
        assert clip_of(found[1]["frames"]) == [3, 4, 5]
        assert not found[2]["frames"][1:].any()

    def test_middle_frames_and_read_clip(self, clips):
        (batch,) = batches(evaluation_stream(clips[:2], config(), 2), -1)
        frames = np.round((batch["frames"][0, ..., 1].mean((1, 2)) - 30) / 12).astype(int)
        assert frames.tolist() == [2, 6, 10, 14]
        one = read_clip(clips[1].path, "video", config())
        assert one.dtype == np.uint8 and (one == batch["frames"][1]).all()

    def test_unreadable_clip_is_left_out(self, clips, tmp_path):
        clips = with_broken(clips, tmp_path, 1)
        registry = Unreadable(clips, 0.5)
        found = batches(evaluation_stream(clips, config(), 3, registry), -1)
        assert [batch["index"].tolist() for batch in found] == [[0, 2, 3], [4, 5, 6]]
        assert list(registry.reasons) == [clips[1].path]

    def test_too_many_unreadable(self, clips, tmp_path):
        clips = with_broken(clips, tmp_path, *range(7))
        registry = Unreadable(clips, 1.0)
        with pytest.raises(TooManyUnreadable), registry.explained():
            batches(evaluation_stream(clips, config(), 3, registry), -1)

    def test_read_clip_that_is_broken(self, tmp_path):
        with pytest.raises(ClipError, match="no such file"):
            read_clip(str(tmp_path / "no.mp4"), "video", config())


class TestUnreadable:
    def test_text(self):
        clips = [Clip(str(n), f"/clips/{n}.mp4", 0, "video") for n in range(20)]
        registry = Unreadable(clips, 0.3)
        for clip in clips[:6]:
            registry.record(clip.path, "broken")
            registry.record(clip.path, "broken")
        assert len(registry) == 6
        with pytest.raises(TooManyUnreadable) as caught:
            registry.record(clips[6].path, "broken")
        text = str(caught.value)
        for part in ("7 of 20", "35.0%", "data.max_unreadable", "30.0%", "/clips/0.mp4: broken", "and 2 more"):
            assert part in text
        with pytest.raises(DataError):
            registry.check()

    def test_from_many_threads(self):
        clips = [Clip(str(n), str(n), 0, "video") for n in range(1000)]
        registry = Unreadable(clips, 1.0)
        work = [threading.Thread(target=lambda: [registry.record(str(n), "x") for n in range(900)]) for _ in range(4)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        assert len(registry) == 900
