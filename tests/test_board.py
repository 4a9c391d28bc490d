"""TensorBoard's files, read back: every picture and number is there, at its step; failures cost no run."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_stss.blocks import MotionSqueezeBlock, SELFYBlock
from keras_stss.config import parse_config
from keras_stss.config.recipe import BoardConfig
from keras_stss.evaluation.colors import displacement_colors
from keras_stss.models import build_model
from keras_stss.training.showing import drawing
from keras_stss.training.showing.board import Board, motion_sheet, offsets_of

LABELS = ["Moving $5 | and $6", "Turning", "Never seen"]


def events(folder):
    """{tag: [(step, value)]}: floats, texts, and pictures as uint8 arrays."""
    found = {}
    for file in sorted(folder.glob("events*")):
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                array = tf.make_ndarray(value.tensor) if value.HasField("tensor") else value.simple_value
                if not isinstance(array, float):
                    texts = array.reshape(-1).tolist()
                    array = tf.io.decode_png(texts[2]).numpy() if len(texts) > 2 else texts[0].decode()
                found.setdefault(value.tag, []).append((event.step, array))
    return found


@pytest.fixture(scope="module")
def model():
    blocks = {"res3": "selfy", "res4": {"motion_squeeze": {"window": [3, 3]}}}
    return small_model(insert=blocks)


def small_model(**values):
    values = {"backbone": "resnet10", "width": 8, **values}
    config = parse_config({"data": {"format": "something_v2", "root": "."}, "model": values})
    return build_model(config, classes=len(LABELS))


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (3, 4, 32, 32, 3), dtype="uint8")


def test_all_that_is_written_can_be_read(tmp_path, model, frames):
    board = Board(tmp_path, LABELS, BoardConfig(motion=2, every=2, profile=(2, 3)))
    for step in range(5, 10):
        board.profile(step)
        board.scalars(step, {"train/loss": 0.5 * step})
    board.clips(10, "train/clips", frames, LABELS)
    board.clips(10, "train/views", np.stack([frames, frames], 1)[:2], LABELS[:2])
    board.motion(10, model, frames)
    board.epoch(10, {"epoch": 1, "val_top1": 0.25}, [0.5, 0.25, None])
    board.epoch(20, {"epoch": 2, "val_top1": 0.5, "note": "no number"}, [0.5, 1.0, None])
    board.close()
    found = events(tmp_path)
    assert found["train/loss"] == [(step, 0.5 * step) for step in range(5, 10)]
    assert found["epoch/val_top1"] == [(10, 0.25), (20, 0.5)] and "epoch/note" not in found
    for tag in ("train/clips", "train/views", "motion/res3_selfy", "motion/res4_motion_squeeze", "classes/accuracy"):
        ((_, picture),) = found[tag]  # pictures of the classes come every second epoch
        assert picture.shape[-1] == 3 and min(picture.shape[:2]) > 100 and np.ptp(picture) > 200, tag
    # Two clips of two views have four strips, each of which is 128 pixels high; three clips have three.
    assert found["train/views"][0][1].shape[0] > 4 * drawing.SIDE > found["train/clips"][0][1].shape[0]
    ((step, table),) = found["classes/best_and_worst"]
    assert step == 20 and table.splitlines()[2:] == ["| Turning | 100.0% |", "| Moving $5 \\| and $6 | 50.0% |"]
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


def test_a_strip_shows_the_pixels_that_the_model_sees(frames):
    clip = frames[0]
    seen = drawing.strip(clip)
    assert seen.shape == (128, 4 * 128 + 3 * 4, 3)
    np.testing.assert_array_equal(seen[2::4, 2:128:4], clip[0])
    np.testing.assert_array_equal(seen[2::4, -126::4], clip[3])
    large = np.repeat(np.arange(12, dtype="uint8"), 256 * 256 * 3).reshape(12, 256, 256, 3) * 20
    seen = drawing.strip(large)
    assert seen.shape == (128, 8 * 128 + 7 * 4, 3)
    np.testing.assert_array_equal(seen[0, 64::132, 0], [0, 40, 60, 100, 120, 160, 180, 220])  # the ends, and evenly


def test_motion_is_drawn_in_the_colours_of_its_direction(frames):
    """One position to the right at t+1, two to the left at t-1; t+0 is left out."""
    displacement = np.zeros((1, 4, 2, 4, 3, 2), "float32")
    displacement[..., 0, 0], displacement[..., 1, 0], displacement[..., 2, 0] = -2, 9, 1
    page = motion_sheet(frames[:1], displacement, (-1, 0, 1))
    colors = displacement_colors(np.array([(-2.0, 0), (1, 0)]), 2.0)
    counts = [int((page == color).all(-1).sum()) for color in colors]
    inside = 4 * 126 * 126  # four maps, each with a thin line around it
    assert all(inside <= count < 1.02 * inside for count in counts)
    assert not (page == displacement_colors(np.array((9.0, 0)), 2.0)).all(-1).sum() > 200


def test_offsets_are_those_of_the_block():
    assert offsets_of(SELFYBlock((-1, 0, 1))) == (-1, 0, 1)
    assert tuple(offsets_of(MotionSqueezeBlock(backward=True))) == (1, -1)
    assert offsets_of(keras.layers.Dense(1)) is None


def test_blocks_without_displacement_are_told_once(tmp_path, frames, caplog):
    board = Board(tmp_path, LABELS, BoardConfig())
    model = small_model(temporal="stm")
    with caplog.at_level(logging.INFO, "keras_stss"):
        board.motion(1, model, frames)
        board.motion(2, model, frames)
    board.close()
    assert len(caplog.records) == 1 and "no motion of res2_0" in caplog.text
    assert not any(tag.startswith("motion") for tag in events(tmp_path))


def test_a_failure_costs_only_what_it_shows(tmp_path, frames, caplog):
    board = Board(tmp_path, LABELS, BoardConfig())
    board.clips(1, "train/clips", frames[..., 0], LABELS)
    board.clips(2, "train/clips", frames, LABELS)  # left out from now on
    board.scalars(2, {"train/loss": 1.0})
    board.close()
    assert list(events(tmp_path)) == ["train/loss"]
    assert len(caplog.records) == 1 and "TensorBoard goes without clips from now on" in caplog.text


@pytest.mark.parametrize(
    ("error", "is_the_disks"),
    [
        (OSError(28, "No space left on device"), True),
        (tf.errors.ResourceExhaustedError(None, None, "events.out; No space left on device\n\tFailed to flush"), True),
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"), False),
        (PermissionError(13, "Permission denied"), False),
    ],
)
def test_a_full_disk_is_the_runs_business(tmp_path, monkeypatch, frames, error, is_the_disks):
    def fails(*_):
        raise error

    monkeypatch.setattr(drawing, "sheet", fails)
    board = Board(tmp_path, LABELS, BoardConfig())
    if is_the_disks:
        with pytest.raises(OSError, match="No space left on device"):
            board.clips(1, "train/clips", frames, LABELS)
    else:
        board.clips(1, "train/clips", frames, LABELS)


def test_charts_of_few_and_of_many_classes():
    few = drawing.class_chart(["$a$ and $b", "c"], [1.0, 0.0])
    many = drawing.class_chart([f"class {number}" for number in range(174)], [number / 173 for number in range(174)])
    blue = np.array((0x1F, 0x6F, 0xB2))
    for chart, share in ((few, 0.5), (many, 0.5)):
        rows, columns = np.nonzero((chart == blue).all(-1))
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert len(rows) / box > 0.4 * share and rows.max() < chart.shape[0] and columns.max() < chart.shape[1]
    rows, columns = np.nonzero((many == blue).all(-1))
    left, right = (rows[columns == column] for column in (columns.min() + 2, columns.max() - 8))
    assert len(left) > 5 * len(right)  # the best first


def test_texts_that_a_font_cannot_show_are_boxes(recwarn):
    drawing.sheet([drawing.Row(np.zeros((128, 128, 3), "uint8"), "何か $ } \\frac{")])
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
