"""More than one view of a clip, mixed batches, and samplings other than the default."""

import numpy as np
import pytest
import tensorflow as tf
from streams import LABELS, assert_same, batches, clip_of, config, with_broken, write_clips
from test_augment_pixels import SETTINGS

from keras_stss.data import decode, pipeline
from keras_stss.data.augment import crop_views, training_view
from keras_stss.data.pipeline import Mix, Protocol, evaluation_stream, read_clip, training_stream
from keras_stss.data.sample import clip_indices


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("set"))


def numbers_of(frames):
    """Which frames of the video these are, by their green: (..., T)."""
    return np.round((frames[..., 1].mean((-1, -2)) - 30) / 12).astype(int)


def train(clips, batch_size=4, start=0, arguments=None, **values):
    return training_stream(clips, LABELS, config(**values), batch_size, 5, start, **(arguments or {}))


class TestTwoViews:
    def test_of_the_same_frames(self, clips):
        (one,), (two,) = batches(train(clips), 1), batches(train(clips, arguments={"views": 2}), 1)
        assert two["frames"].shape == (4, 2, 4, 24, 24, 3) and two["label"].shape == (4,)
        assert (two["frames"][:, 0] == one["frames"]).all()  # the first is the stream's own
        assert (numbers_of(two["frames"][:, 0]) == numbers_of(two["frames"][:, 1])).all()
        assert all((views[0] != views[1]).any() for views in two["frames"])

    def test_seeded_and_independent_of_workers(self, clips):
        whole = batches(train(clips, workers=1, arguments={"views": 2}), 4)
        assert_same(whole, batches(train(clips, workers=5, arguments={"views": 2}), 4))
        later = train(clips, start=int(whole[1]["position"][-1]) + 1, arguments={"views": 2})
        assert_same(whole[2:], batches(later, 2))

    def test_mixed_alike(self, clips):
        (plain,) = batches(train(clips, arguments={"views": 2}), 1)
        (mixed,) = batches(train(clips, arguments={"views": 2, "mix": Mix(cutmix=1.0)}), 1)
        assert mixed["frames"].shape == plain["frames"].shape
        changed = (mixed["frames"] != plain["frames"]).any((2, 5))  # (B, 2, H, W): where another clip shows
        assert changed.any() and (changed[:, 0] == changed[:, 1]).mean() > 0.95


class TestMixed:
    def test_batch(self, clips):
        (plain,), (mixed,) = batches(train(clips), 1), batches(train(clips, arguments={"mix": Mix(mixup=0.8)}), 1)
        assert set(mixed) == {"frames", "label", "position", "target"}
        assert (mixed["label"] == plain["label"]).all() and (mixed["position"] == plain["position"]).all()
        assert mixed["target"].shape == (4, 2) and mixed["target"].dtype == np.float32
        np.testing.assert_allclose(mixed["target"].sum(1), 1, atol=1e-6)
        for row in range(4):
            own, other = (plain["frames"][each].astype(float) for each in (row, row ^ 1))
            share = ((mixed["frames"][row] - other) * (own - other)).sum() / ((own - other) ** 2).sum()
            assert abs(share * own + (1 - share) * other - mixed["frames"][row]).max() < 1
            if plain["label"][row] != plain["label"][row ^ 1]:
                assert mixed["target"][row, plain["label"][row]] == pytest.approx(share, abs=0.01)

    def test_seeded_and_independent_of_workers(self, clips):
        arguments = {"mix": Mix(0.8, 1.0)}
        whole = batches(train(clips, workers=1, arguments=arguments), 4)
        assert_same(whole, batches(train(clips, workers=5, arguments=arguments), 4))
        assert_same(whole[2:], batches(train(clips, start=8, arguments=arguments), 2))


class TestSettings:
    def test_any_number_of_workers(self, clips):
        values = {"augment": SETTINGS["all"], "resize": (72, 90)}
        first = batches(train(clips, workers=1, **values), 3)
        assert_same(first, batches(train(clips, workers=6, **values), 3))

    @pytest.mark.parametrize("large", [0, 10**9])
    @pytest.mark.parametrize("setting", ["multi_scale", "multi_scale_corner", "random_scale", "random_resized", "all"])
    def test_what_is_decoded_is_what_is_shown(self, clips, setting, large, monkeypatch):
        """Of large frames a stream decodes the part that its view shows; cutting it from whole frames is the same."""
        monkeypatch.setattr(pipeline, "_LARGE", large)
        data = config(augment=SETTINGS[setting])
        (batch,) = batches(training_stream(clips[:1], ["x", "y"], data, 1, 5), 1)
        generator = np.random.default_rng((5, 1, 0))
        frames = decode.read_clip(clips[0], lambda n: clip_indices(n, 4, rng=generator)[0])
        seed = np.random.default_rng((5, 2, 0)).integers(2**31, size=2)
        assert (training_view(tf.constant(frames), seed, data, True).numpy() == batch["frames"][0]).all()

    def test_a_window_is_sought_once(self, clips, monkeypatch):
        """What is cut already is shown as it is, even where another graph would round its window by a pixel."""
        monkeypatch.setattr(pipeline, "_LARGE", 0)
        compiled = pipeline._compiled

        def moved(*arguments):
            window = compiled(*arguments)
            return lambda *values: (lambda top, left, *size: (top + (-1 if top else 1), left, *size))(*window(*values))

        (plain,) = batches(train(clips[:1], resize=(72, 90)), 1)
        monkeypatch.setattr(pipeline, "_compiled", moved)
        (found,) = batches(train(clips[:1], resize=(72, 90)), 1)
        assert found["frames"].shape == plain["frames"].shape
        assert not (found["frames"] == plain["frames"]).all()

    @pytest.mark.parametrize("large", [0, 10**9])
    def test_the_centre_of_large_and_small_frames(self, clips, large, monkeypatch):
        monkeypatch.setattr(pipeline, "_LARGE", large)
        (batch,) = batches(evaluation_stream(clips[:1], config(), 1), -1)
        assert (read_clip(clips[0].path, "video", config()) == batch["frames"][0]).all()

    def test_dense(self, clips):
        """Clips of 16 frames: every 64 / 4 = 16th frame, from the beginning again where they end."""
        (batch,) = batches(train(clips, sampling="dense"), 1)
        assert not numbers_of(batch["frames"]).any()
        (batch,) = batches(train(clips, sampling="dense", frames=12), 1)
        assert (numbers_of(batch["frames"]) == np.arange(12) * 5 % 16).all()

    def test_dense_evaluation_and_prediction(self, clips):
        data = config(sampling="dense", frames=12)
        (batch,) = batches(evaluation_stream(clips[:2], data, 2), -1)
        assert (numbers_of(batch["frames"]) == np.arange(12) * 5 % 16).all()
        assert (read_clip(clips[1].path, "video", data) == batch["frames"][1]).all()


class TestProtocol:
    @pytest.mark.parametrize(("count", "crops"), [(2, 1), (1, 3), (2, 3), (3, 10)])
    def test_views_clip_by_clip(self, clips, count, crops):
        protocol = Protocol(clips=count, crops=crops)
        stream = evaluation_stream(clips[:3], config(), 2, protocol=protocol)
        assert stream.element_spec["frames"] == tf.TensorSpec((2, protocol.views, 4, 24, 24, 3), tf.uint8)
        found = batches(stream, -1)
        assert [batch["index"].tolist() for batch in found] == [[0, 1], [2, -1]]
        assert [batch["weight"].tolist() for batch in found] == [[1, 1], [1, 0]]
        frames = decode.read_clip(clips[1], lambda n: np.arange(n))
        for number, indices in enumerate(clip_indices(16, 4, clips=count)):
            expected = crop_views(frames[indices], (32, 40), 24, crops).numpy()
            assert (found[0]["frames"][1, number * crops : (number + 1) * crops] == expected).all()

    def test_one_view_is_todays(self, clips):
        streams = (evaluation_stream(clips, config(), 3, protocol=Protocol()), evaluation_stream(clips, config(), 3))
        assert_same(*(batches(stream, -1) for stream in streams))

    def test_random_clips(self, clips):
        """Other frames for each clip and video, the same each time, whatever the workers and the batches."""
        protocol = Protocol(clips=5, random=True)
        (batch,) = batches(evaluation_stream(clips, config(workers=1), 7, protocol=protocol), -1)
        numbers = numbers_of(batch["frames"])
        assert numbers.shape == (7, 5, 4) and (numbers // 4 == np.arange(4)).all()
        assert len(np.unique(numbers[0], axis=0)) > 2 and len(np.unique(numbers[:, 0], axis=0)) > 2
        again = batches(evaluation_stream(clips, config(workers=4), 2, protocol=protocol), -1)
        assert (np.concatenate([each["frames"] for each in again])[:7] == batch["frames"]).all()
        other = Protocol(clips=5, random=True, seed=1)
        (batch,) = batches(evaluation_stream(clips, config(), 7, protocol=other), -1)
        assert (numbers_of(batch["frames"]) != numbers).any()

    def test_dense_clips(self, clips):
        protocol = Protocol(clips=2)
        (batch,) = batches(evaluation_stream(clips[:1], config(sampling="dense", frames=12), 1, protocol=protocol), -1)
        assert (numbers_of(batch["frames"]) == np.arange(12) * 5 % 16).all()

    def test_frames_are_decoded_once(self, clips, monkeypatch):
        asked, read = [], decode.read_clip

        def counting(clip, choose, window=None):
            return read(clip, lambda n: asked.append(choose(n)) or asked[-1], window)

        monkeypatch.setattr(decode, "read_clip", counting)
        batches(evaluation_stream(clips[:1], config(), 1, protocol=Protocol(clips=10, crops=3)), -1)
        assert len(asked) == 1 and len(set(asked[0])) == len(asked[0]) <= 16

    def test_unreadable_clip(self, clips, tmp_path):
        broken = with_broken(clips, tmp_path, 1)
        stream = evaluation_stream(broken, config(max_unreadable=0.5), 6, protocol=Protocol(clips=2, crops=3))
        (batch,) = batches(stream, -1)
        assert batch["index"].tolist() == [0, 2, 3, 4, 5, 6] and clip_of(batch["frames"][1]) == [2] * 6

    @pytest.mark.parametrize("values", [{"clips": 0}, {"crops": 2}])
    def test_refusals(self, values):
        with pytest.raises(ValueError, match=r"crops 1, 3, 5 or 10\. Received: clips="):
            Protocol(**values)
