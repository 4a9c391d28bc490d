"""Small data sets to pack, and what a packed one gives."""

import numpy as np
import tensorflow as tf
from conftest import square_clip, write_video

from keras_stss.config import DataConfig
from keras_stss.data.annotations import Clip, DataSet, read_annotations
from keras_stss.data.pipeline import Unreadable, training_stream

LABELS = ["blue square", "green square", "red square"]


def write_folder(path, frames, suffix=".jpg"):
    """Writes uint8 frames (T, H, W, 3) as a folder of pictures."""
    path.mkdir(parents=True)
    for number, frame in enumerate(frames, 1):
        encoded = tf.io.encode_jpeg(frame) if suffix == ".jpg" else tf.io.encode_png(frame)
        (path / f"{number:05d}{suffix}").write_bytes(encoded.numpy())
    return path


def video_set(folder, train=7, validation=3):
    """Videos of 5 to 11 frames of 32x40 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = [
        Clip(
            f"clip {number}",
            str(write_video(folder / f"{number}.mp4", square_clip(number % 3, number, frames=5 + number % 7))),
            number % 3,
            "video",
        )
        for number in range(train + validation)
    ]
    return DataSet(clips[:train], clips[train:], LABELS)


def folder_set(folder, train=5, validation=2, suffix=".jpg"):
    """Folders of 5 to 8 frames of 32x40 pixels."""
    clips = [
        Clip(
            str(number),
            str(write_folder(folder / str(number), square_clip(number % 3, number, frames=5 + number % 4), suffix)),
            number % 3,
            "frames",
        )
        for number in range(train + validation)
    ]
    return DataSet(clips[:train], clips[train:], LABELS)


def config(root, **values):
    """The data section that reads a packed folder."""
    given = {"frames": 4, "resize": (32, 40), "crop": 24, "workers": 2} | values
    return DataConfig(format="records", root=str(root), **given)


def packed(root):
    """The :class:`DataSet` of a packed folder."""
    return read_annotations(config(root))


def batches(data_set, count=6, **values):
    """The first batches of a training stream of a data set, and what was unreadable by position in the list."""
    data = config("unused", max_unreadable=0.9, **values)
    registry = Unreadable(data_set.train, data.max_unreadable)
    stream = training_stream(data_set.train, LABELS, data, batch_size=3, seed=5, registry=registry)
    found = [{name: value.numpy() for name, value in batch.items()} for batch in stream.take(count)]
    places = [clip.place for clip in data_set.train]
    return found, {places.index(place) for place in registry.reasons}


def assert_same(one, other):
    """Two lists of batches are the same, bit for bit."""
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
