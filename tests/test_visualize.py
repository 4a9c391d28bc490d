"""What a network sees: known motion, known gradients, known similarities."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_stss.blocks import MotionSqueezeBlock
from keras_stss.config import parse_config
from keras_stss.evaluation.colors import displacement_colors
from keras_stss.layers import NormalizeFrames
from keras_stss.models import build_model, ensemble, feature_extractor
from keras_stss.ops import stss
from keras_stss.visualize import (
    VisualizeError,
    change_maps,
    find_label,
    grad_cam,
    look_at,
    motion_maps,
    motion_picture,
    overlay_frames,
    self_similarity_at,
    similarity_picture,
)
from keras_stss.visualize.page import clip_files

STAGES = ("pool1", "res2", "res3", "res4", "res5")
SELFY = {"temporal_offsets": [-1, 0, 1], "window": [7, 7], "channels": 16}
SELFY |= {"extraction_channels": [4, 4], "integration_channels": [4]}
SQUEEZE = {"channels": 16, "window": [5, 5], "transform_channels": [4, 4, 4]}


def small_model(seed=5, frames=4, **values):
    values = {"backbone": "resnet10", "width": 8, "temporal": "tsn", **values}
    config = parse_config({"data": {"format": "something_v2", "root": ".", "frames": frames}, "model": values})
    keras.utils.set_random_seed(seed)
    return build_model(config, classes=3)


@pytest.fixture(scope="module")
def model():
    """Without any training: random convolutions give a moved picture moved features."""
    return small_model(insert={"res2": {"selfy": {**SELFY, "strides": 1}}, "res3": {"motion_squeeze": SQUEEZE}})


def moving_clip(right, down, frames=4, side=128, seed=1):
    """A texture that moves by so many pixels a frame, uint8 (T, side, side, 3); nothing wraps round."""
    margin = frames * max(abs(right), abs(down))
    size = side + 2 * margin
    coarse = np.random.default_rng(seed).uniform(0, 255, (1, size // 8, size // 8, 3))
    texture = tf.image.resize(coarse, (size, size), method="bicubic").numpy()[0].clip(0, 255).astype("uint8")
    starts = [(margin - time * down, margin - time * right) for time in range(frames)]
    return np.stack([texture[y : y + side, x : x + side] for y, x in starts])


def test_the_wheel_has_the_published_entries():
    """The 55 colours of Baker et al.'s table: between two corners one channel rises or falls in equal steps."""
    entries = []
    for steps, start, channel, sign in (
        (15, (255, 0, 0), 1, 1), (6, (255, 255, 0), 0, -1), (4, (0, 255, 0), 2, 1),
        (11, (0, 255, 255), 1, -1), (13, (0, 0, 255), 0, 1), (6, (255, 0, 255), 2, -1),
    ):  # fmt: skip
        for step in range(steps):
            color = np.array(start, "float64")
            color[channel] += sign * 255 * step / steps
            entries.append(color)
    turn = 2 * np.pi * np.arange(55) / 55
    found = displacement_colors(np.stack([np.cos(turn), np.sin(turn)], -1), 1.0)
    np.testing.assert_allclose(found, entries, atol=0.51)


@pytest.mark.parametrize(("right", "down"), [(8, 0), (-8, 8), (0, -8)])
def test_known_motion_is_found_within_one_cell(model, right, down):
    """8 pixels are 2 cells of SELFY's map here and 1 cell of MotionSqueeze's."""
    found = {each.name: each for each in motion_maps(model, moving_clip(right, down))}
    assert set(found) == {"res2_selfy", "res3_motion_squeeze"}
    for each, cell, margin in ((found["res2_selfy"], 4, 6), (found["res3_motion_squeeze"], 8, 4)):
        assert each.cell == (cell, cell) and each.from_block
        for place in each.moving:
            expected = np.array([right, down]) / cell * each.offsets[place]
            there = [time for time in range(4) if 0 <= time + each.offsets[place] < 4]
            moved = each.displacement[there, margin:-margin, margin:-margin, place]
            away = np.linalg.norm(moved - expected, axis=-1)
            assert (away < 1).mean() > 0.95, (each.name, each.offsets[place], away)
            # Not where the clip has no such frame.
            assert np.isnan(np.delete(each.displacement, there, 0)[..., place, :]).all()


def test_pairs_are_shown_at_their_own_frames():
    """A causal MotionSqueeze and the other one compare the same frames: the same maps, whatever their order."""
    maps = {}
    for causal in (False, True):
        frames = keras.Input((None, None, None, 3), dtype="uint8")
        pixels = NormalizeFrames()(frames)
        block = MotionSqueezeBlock(None, (5, 5), backward=True, transform_channels=(4,), causal=causal, name="block")
        logits = keras.layers.Dense(2, name="logits")(keras.ops.mean(block(pixels), (1, 2, 3)))
        (found,) = motion_maps(keras.Model(frames, logits), moving_clip(2, 1, frames=3, side=16))
        maps[causal] = {offset: place for place, offset in enumerate(found.offsets)}, found
    for offset in (-1, 1):
        (first, ahead), (second, causal) = maps[False], maps[True]
        for kind in ("displacement", "confidence", "similarity"):
            values = [np.moveaxis(getattr(each, kind), 3, 0) for each in (ahead, causal)]
            np.testing.assert_allclose(values[0][first[offset]], values[1][second[offset]], atol=1e-5, err_msg=kind)
        inner = ahead.displacement[1, 4:-4, 4:-4, first[offset]]
        np.testing.assert_allclose(np.median(inner, (0, 1)), (2 * offset, offset), atol=0.3)


def test_similarity_at_a_point_is_that_of_the_features(model):
    clip = moving_clip(8, 0, side=64)
    features = feature_extractor(model)(clip[None])
    found = self_similarity_at(model, clip, (63, 17.5, 2), stage="res4")
    assert found.place == (2, 1, 3) and found.frames == (0, 1, 2, 3, None)
    expected = stss(features["res4"], (-2, -1, 0, 1, 2), (9, 9))[0, 2, 1, 3]
    np.testing.assert_allclose(found.volume, expected, atol=1e-5)
    # Of a block: of what its own convolution makes of the stage's features.
    block = model.get_layer("res2_selfy")
    inputs = keras.Model(model.input, block.input)(clip[None])
    found = self_similarity_at(model, clip, (30, 33, 1), block="res2_selfy")
    assert found.place == (1, 8, 7) and found.box == ((8 - 3) * 4, (7 - 3) * 4, 28, 28)
    expected = stss(block.reduce(inputs, training=False), (-1, 0, 1), (7, 7))[0, 1, 8, 7]
    np.testing.assert_allclose(found.volume, expected, atol=1e-5)
    with pytest.raises(VisualizeError, match=r"x from 0 to 63.*Received: x=64"):
        self_similarity_at(model, clip, (64, 0, 0))
    with pytest.raises(VisualizeError, match=r"no motion block 'x'. There are: res2_selfy, res3_motion_squeeze"):
        self_similarity_at(model, clip, block="x")


def test_the_strongest_motion_is_where_something_moves(model):
    clip = np.repeat(moving_clip(0, 0, frames=1), 4, axis=0)
    thing = moving_clip(0, 0, frames=1, side=48, seed=9)[0]
    for time, frame in enumerate(clip):
        frame[40:88, 24 + 8 * time : 72 + 8 * time] = thing
    x, y, t = motion_maps(model, clip, stage="res2")[0].strongest()
    assert 40 <= y < 88 and 16 + 8 * t <= x < 80 + 8 * t


def by_hand(head):
    """Stages that pass the pixels on, from 0 to 1, and a head on the mean of each channel."""
    frames = keras.Input((None, None, None, 3), dtype="uint8")
    values = NormalizeFrames((0, 0, 0), (1, 1, 1))(frames)
    for stage in STAGES:
        values = keras.layers.Activation("linear", name=stage)(values)
    logits = head(keras.ops.mean(values, (1, 2, 3)))
    return keras.Model(frames, keras.layers.Activation("linear", name="logits")(logits))


def test_grad_cam_of_a_gradient_known_by_hand():
    """y = 3·r² - 2·g with the means r = 0.5 and g = 0.25: dy/dA is 2·3·r = 3 and -2, over the number of places."""
    model = by_hand(lambda mean: keras.ops.stack([3 * mean[:, 0] ** 2 - 2 * mean[:, 1], mean[:, 2]], -1))
    clip = np.zeros((2, 2, 2, 3), "uint8")
    clip[0, ..., 0] = 255  # red 1 in the first frame: 0.5 in the mean
    clip[:, 0, 0, 1] = 255  # green in one of four places: 0.25
    found = grad_cam(model, clip, label=0)
    np.testing.assert_allclose(found.maps, [[[1, 3], [3, 3]], [[0, 0], [0, 0]]], atol=1e-5)
    np.testing.assert_allclose(found.heat, found.maps / 3, atol=1e-5)
    assert found.stage == "res5" and found.probability == pytest.approx(1 / (1 + np.exp(-0.25)))
    # Blue, of which there is none: nothing speaks for it.
    assert not grad_cam(model, clip, label=1).heat.any()
    with pytest.raises(VisualizeError, match="label must be from 0 to 1"):
        grad_cam(model, clip, label=2)


def test_grad_cam_points_to_what_decides():
    """Red and blue squares in one clip: each class lies where its colour is, with the same model."""
    model = by_hand(lambda mean: mean @ keras.ops.convert_to_tensor([[5.0, -5], [0, 0], [-5, 5]]))
    clip = np.full((3, 24, 24, 3), 40, "uint8")
    clip[:, 2:8, 2:8] = (255, 0, 0)
    clip[1:, 14:22, 12:20] = (0, 0, 255)
    red, blue = (grad_cam(model, clip, label).heat for label in (0, 1))
    assert red[:, 2:8, 2:8].min() == 1 and red.sum() == pytest.approx(3 * 36)
    assert blue[1:, 14:22, 12:20].min() == 1 and blue.sum() == pytest.approx(2 * 64)


def test_models_without_displacements_show_those_of_their_features():
    clip = moving_clip(8, 0, side=64)
    model = small_model(temporal="stm")
    (found,) = motion_maps(model, clip)
    assert not found.from_block and found.name == "res3" and found.cell == (8, 8)
    changes = change_maps(model, clip)
    assert [each.name.split("_")[0] for each in changes] == ["res2", "res3", "res4", "res5"]
    still = change_maps(model, clip[:1].repeat(4, 0), stage="res3")
    assert len(still) == 1 and still[0].strength[:-1].max() < changes[1].strength[:-1].mean()
    with pytest.raises(VisualizeError, match=r"no stage 'res9'. It has: pool1, res2, res3, res4, res5"):
        motion_maps(model, clip, stage="res9")
    with pytest.raises(VisualizeError, match=r"uint8 \(T, H, W, 3\). Received: shape=\(4, 64, 64\)"):
        motion_maps(model, clip[..., 0])


def test_networks_that_shorten_time():
    model = small_model(backbone="i3d", temporal="3d", width=4)
    clip = moving_clip(4, 0, frames=8, side=32)
    (found,) = motion_maps(model, clip, stage="conv2")
    assert found.frames.tolist() == [0, 2, 4, 6] and found.size == (8, 32, 32)
    cam = grad_cam(model, clip)
    assert cam.stage == "mixed_5c" and len(cam.maps) == 1 and cam.heat.shape == (8, 32, 32)
    assert found.similarity_at((0, 0, 5)).frames[2] in (4, 6)
    _, caption = clip_files(look_at(model, clip, ["a", "b", "c"], stage="conv2"))["motion-conv2.png"]
    assert "t+1 is 2 later" in caption


def test_a_model_that_says_no_numbers(model):
    broken = keras.models.clone_model(model)
    broken.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    with pytest.raises(VisualizeError, match="are no numbers"):
        look_at(broken, moving_clip(0, 0, side=32), ["a", "b", "c"])


def test_one_network_of_an_ensemble():
    insert = {"res3": {"motion_squeeze": SQUEEZE}}
    members = [(small_model(seed, insert=insert), frames) for seed, frames in ((1, 2), (2, 4))]
    both, clip = ensemble(members), moving_clip(8, 0, frames=8, side=32)
    with pytest.raises(VisualizeError, match=r"an ensemble of 2 networks.*from 0 to 1, by member="):
        motion_maps(both, clip)
    (found,), (alone,) = motion_maps(both, clip, member=1), motion_maps(members[1][0], clip[1::2])
    np.testing.assert_allclose(found.displacement, alone.displacement, atol=1e-5)
    assert found.name == "res3_motion_squeeze"
    cams = grad_cam(both, clip, label=0, member=1), grad_cam(members[1][0], clip[1::2], label=0)
    np.testing.assert_allclose(cams[0].heat, cams[1].heat, atol=1e-4)
    with pytest.raises(VisualizeError, match=r"from 0 to 1. Received: 2"):
        grad_cam(both, clip, member=2)


def test_pictures_show_the_direction(model):
    """To the right is red at t+1, light blue at t-1; the point's cell is marked."""
    clip = moving_clip(8, 0)
    look = look_at(model, clip, ["a", "b", "c"], truth="b", point=(60, 60, 1))
    assert sum(probability for _, probability in look.ranking) == pytest.approx(1)
    assert look.cams[-1].label == 1 and not look.is_still
    found = next(each for each in look.maps if each.name == "res2_selfy")
    picture = motion_picture(clip, found, "$5 | moving")
    rows = np.array([picture[top : top + 128, 40:560].reshape(-1, 3).mean(0) for top in (157, 289)])
    assert rows[0, 0] < rows[0, 2] and rows[1, 0] > rows[1, 2], rows
    points = similarity_picture(clip, look.points[0])
    assert (points == (255, 40, 40)).all(-1).any()
    frames = overlay_frames(look)
    assert len(frames) == 4 and frames.dtype == np.uint8 and (frames[0] != frames[3]).any()


def test_labels_by_name_in_any_case_or_by_number():
    labels = ["Push left", "pull", "7"]
    assert [find_label(labels, text) for text in ("push LEFT", "7", "1")] == [0, 2, 1]
    with pytest.raises(VisualizeError, match=r"no class 'pul' among the 3. Did you mean: 'pull'"):
        find_label(labels, "pul")
