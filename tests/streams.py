"""Clips whose pixels tell where they come from, and what the tests of streams do with batches."""

import numpy as np
from conftest import write_video

from keras_stss.config import DataConfig
from keras_stss.data.annotations import Clip

LABELS = ["Holding something", "Pushing something from left to right"]


def config(**values):
    given = {"frames": 4, "resize": (32, 40), "crop": 24, "workers": 2} | values
    return DataConfig(format="clips", root=".", annotations="clips.csv", **given)


def write_clips(folder):
    """Seven clips; the red of a frame tells the clip, its green the frame, and its left half is darker in blue."""
    made = []
    for number in range(7):
        frames = np.zeros((16, 36, 44, 3), np.uint8)
        frames[..., 0] = 40 + 25 * number
        frames[..., 1] = (30 + 12 * np.arange(16))[:, None, None]
        frames[:, :, 22:, 2] = 200
        path = write_video(folder / f"{number}.mp4", frames)
        made.append(Clip(str(number), str(path), number % 2, "video"))
    return made


def with_broken(clips, tmp_path, *numbers):
    broken = list(clips)
    for number in numbers:
        path = tmp_path / f"broken{number}.mp4"
        path.write_bytes(b"")
        broken[number] = Clip(str(number), str(path), clips[number].label, "video")
    return broken


def batches(stream, count):
    return [{name: value.numpy() for name, value in batch.items()} for batch in stream.take(count)]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for name in one:
            assert (one[name] == other[name]).all(), name


def clip_of(frames):
    return np.round((frames[..., 0].mean((1, 2, 3)) - 40) / 25).astype(int).tolist()
