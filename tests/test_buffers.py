"""Memory that is used again, and frames that are copied to their places."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from keras_stss.data import buffers as module
from keras_stss.data.buffers import Buffers
from keras_stss.data.frames import ClipError, Kept

SHAPE = (4, 120, 160, 3)


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_comes_back_when_the_last_view_is_gone():
    buffers = Buffers()
    first = buffers.empty(SHAPE)
    view, place = first[1:, 5:, ::2], address(first)
    del first
    assert address(buffers.empty(SHAPE)) != place and place % 64 == 0
    view[:] = 7
    del view
    gc.collect()
    again = {address(buffers.empty((3, 120, 160, 3))) for _ in range(3)}  # each dies before the next
    assert len(again) == 1
    assert buffers.kept <= 2 * np.prod(SHAPE) + 2 * 4096


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "_KEPT", 3 * int(np.prod(SHAPE)))
    buffers = Buffers()
    taken = [buffers.empty(SHAPE) for _ in range(8)]
    assert buffers.kept == 0
    taken.clear()
    assert 0 < buffers.kept <= module._KEPT
    assert buffers.empty((10, 2)).shape == (10, 2) and buffers.empty(SHAPE, np.int32).nbytes == 4 * np.prod(SHAPE)


def test_a_tensor_keeps_its_memory():
    """TensorFlow takes the arrays over without a copy; what it still holds must not be written to again."""
    buffers = Buffers()

    def made(number):
        frames = buffers.empty(SHAPE)
        frames[:] = number
        return frames

    stream = tf.data.Dataset.range(12).map(lambda number: tf.numpy_function(made, [number], tf.uint8), 3)
    held = list(stream.prefetch(2))
    assert [np.unique(frames).tolist() for frames in held] == [[number] for number in range(12)]


def test_many_threads():
    buffers = Buffers()

    def check(number):
        frames = buffers.empty(SHAPE)
        frames[:] = number % 251
        return bool((frames == number % 251).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(300)))
    assert buffers.kept <= 9 * (np.prod(SHAPE) + 4096)  # of the threads, not of the calls


def test_frames_in_their_places():
    kept = Kept([3, 3, 5, 9])
    assert len(kept) == 3 and 5 in kept and 4 not in kept
    for index in (3, 9, 5):
        assert not kept.is_full
        kept[index] = np.full((2, 2, 3), index, np.uint8)
    assert kept.is_full and kept.frames[:, 0, 0, 0].tolist() == [3, 3, 5, 9]
    with pytest.raises(ClipError, match="frame 8 cannot be decoded"):
        Kept([8]).frames  # noqa: B018 - the error is what is wanted
