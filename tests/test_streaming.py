"""Models on a stream: a frame at a time is the clip so far, the state is all there is, and exports do the same."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from seeded import randomize, sample

from keras_stss.blocks import MotionSqueezeBlock, NonLocalBlock, SELFYBlock, STMBlock
from keras_stss.config import ConfigError, parse_config
from keras_stss.layers import (
    Conv3DBN,
    ConvBN,
    MotionDifference,
    NormalizeFrames,
    TemporalConv,
    TemporalShift,
)
from keras_stss.models import build_model, transfer_weights
from keras_stss.ops import portable
from keras_stss.ops.shift import causal_shift, temporal_shift
from keras_stss.streaming import save_litert, save_saved_model, streaming_model, windowed_model

CLASSES, FRAMES, HEIGHT, WIDTH = 5, 8, 33, 40
#: Coarse patches, other ones in each frame: of fine noise alone all frames look the same to a network.
CLIP = np.random.default_rng(1).integers(0, 256, (2, FRAMES, 5, 5, 3), np.uint8)
CLIP = CLIP.repeat(8, axis=2).repeat(8, axis=3)[:, :, :HEIGHT]
SELFY = {
    "temporal_offsets": [-3, 0, -1],
    "window": [5, 3],
    "channels": 8,
    "extraction_channels": [4, 8],
    "integration_channels": [8],
}
SQUEEZE = {"window": [5, 5], "channels": 8, "transform_channels": [4, 4]}
EVERYTHING = {
    "backbone": "resnet10",
    "width": 8,
    "insert": {
        "res2": {"parallel": [{"selfy": SELFY}, {"motion_squeeze": SQUEEZE}]},
        "res3": [{"motion_squeeze": SQUEEZE}, {"selfy": SELFY}],
        "res4": "stm",
    },
}
NETWORKS = {
    "everything": EVERYTHING,
    "mobilenet": {"backbone": "mobilenet_v2", "width": 16},
    "stm": {"backbone": "resnet10", "width": 16, "temporal": "stm"},
}
BLOCKS = {
    "shift": lambda: TemporalShift(4, causal=True),
    "shift-of-nothing": lambda: TemporalShift(100, causal=True),
    "selfy-dot": lambda: SELFYBlock(**{**SELFY, "similarity": "dot", "strides": 1, "extraction": "conv3d"}),
    "selfy-gaussian": lambda: SELFYBlock(**{**SELFY, "similarity": "embedded_gaussian", "output": "r"}),
    "selfy-of-one-frame": lambda: SELFYBlock(**{**SELFY, "temporal_offsets": (0,), "strides": 0.5}),
    "selfy-silent": lambda: SELFYBlock(output="v"),
    "squeeze-both-ways": lambda: MotionSqueezeBlock(**SQUEEZE, backward=True, fusion="concat", causal=True),
    "squeeze-plain": lambda: MotionSqueezeBlock(
        None, (5, 5), confidence=False, transform_channels=(4,), fusion="multiply", causal=True
    ),
    "stm-frequency": lambda: STMBlock(strides=2, kernels="frequency", fusion="concat", causal=True),
    "stm-ordinary": lambda: STMBlock(temporal="ordinary", motion="ordinary", spatial="channelwise", causal=True),
    "stm-difference": lambda: MotionDifference(strides=2, causal=True),
}


def network(model, precision="float32", **more):
    """A network of random weights, whose logits differ."""
    data = {"format": "clips", "root": ".", "annotations": "a.csv"}
    values = {"data": data, "model": {"causal": True, **model, **more}, "train": {"precision": precision}}
    keras.utils.set_random_seed(0)
    return spread(build_model(parse_config(values), CLASSES), 0.05)


def spread(model, head=1.0):
    """Random weights, so that logits are some units apart."""
    seeded = [weight for weight in model.weights if "seed_generator" not in weight.path]
    rng = np.random.default_rng(0)
    for weight in seeded:
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        else:
            apart = weight.shape[-1] == 1  # a number for each channel, which do not mix
            fan_in = np.prod(weight.shape[: -2 if apart else -1]) if len(weight.shape) > 1 else 25
            gain = head if "logits" in weight.path else np.sqrt(2)
            weight.assign(rng.normal(size=weight.shape) * gain / np.sqrt(fan_in))
    return model


def around(*layers):
    """A small model of layers that see time."""
    frames = keras.Input((None, None, None, 3), dtype="uint8")
    features = ConvBN(8, 3, 2)(NormalizeFrames()(frames))
    for layer in layers:
        features = layer(features)
    pooled = ops.mean(ops.mean(features, axis=(2, 3)), axis=1)
    return spread(keras.Model(frames, keras.layers.Dense(CLASSES, dtype="float32", name="logits")(pooled)))


def run(stream, clip, state=None):
    """Logits of every step (T, B, K), and the last state."""
    state = stream.initial_state(len(clip), *clip.shape[2:4]) if state is None else state
    logits = []
    for number in range(clip.shape[1]):
        each, state = stream.step(clip[:, number], state)
        logits.append(each.numpy())
    return np.array(logits), state


def prefixes(model, clip):
    """Logits of the clip's first frame, its first two, … all (T, B, K)."""
    shape = (clip.shape[0], None, *clip.shape[2:])
    logits = tf.function(lambda clip: model(clip, training=False), [tf.TensorSpec(shape, tf.uint8)])
    return np.array([logits(tf.constant(clip[:, : number + 1])) for number in range(clip.shape[1])])


def every_kind():
    return around(
        TemporalShift(4, causal=True),
        SELFYBlock(**SELFY),
        MotionSqueezeBlock(**SQUEEZE, causal=True),
        STMBlock(causal=True),
    )


@pytest.fixture(scope="module")
def small():
    return every_kind()


@pytest.fixture(scope="module")
def stream(small):
    return streaming_model(small)


@pytest.fixture(scope="module")
def steps(stream):
    return run(stream, CLIP)[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_frame_at_a_time_is_the_clip_so_far(name):
    """So no frame of the clip sees a later one, either: the step could not know it."""
    model = network(NETWORKS[name])
    expected = prefixes(model, CLIP)
    found = run(streaming_model(model), CLIP)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(np.diff(expected, axis=0)).max() > 0.01


@pytest.mark.parametrize("name", BLOCKS)
def test_every_layer_steps(name):
    model = around(BLOCKS[name]())
    expected = prefixes(model, CLIP)
    found = run(streaming_model(model), CLIP)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_half_precision():
    """Within its rounding; what is kept is float32 all the same."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = every_kind()
    finally:
        keras.config.set_dtype_policy("float32")
    expected = prefixes(model, CLIP)
    found, state = run(streaming_model(model), CLIP)
    np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())
    assert {value.dtype.name for name, value in state.items() if name != "count"} == {"float32"}


def test_state_is_all_there_is(stream, steps, tmp_path):
    """Written to a file and read back it goes on as before; steps on other clips in between leave no trace."""
    _, state = run(stream, CLIP[:, :3])
    np.savez(tmp_path / "state.npz", **state)
    run(stream, CLIP[:, ::-1])
    with np.load(tmp_path / "state.npz") as file:
        again, _ = run(stream, CLIP[:, 3:], dict(file))
    np.testing.assert_allclose(again, steps[3:], atol=1e-6)


def test_zeros_begin_anew(stream, steps):
    """Of all clips, or of one row of the batch."""
    _, state = run(stream, CLIP[:, 4:])
    fresh = {name: np.array(value) for name, value in state.items()}
    for value in fresh.values():
        value[1] = 0
    clip = np.stack([CLIP[1], CLIP[1]])
    begun, _ = run(stream, clip, fresh)
    np.testing.assert_allclose(begun[:, 1], steps[:, 1], atol=1e-5)
    assert np.abs(begun[:, 0] - begun[:, 1]).max() > 0.01
    np.testing.assert_allclose(run(stream, CLIP)[0], steps, atol=1e-6)


def test_clips_of_a_batch_are_apart(stream, steps):
    for row in (0, 1):
        np.testing.assert_allclose(run(stream, CLIP[row : row + 1])[0][:, 0], steps[:, row], atol=1e-5)


def test_a_frame_left_out(small, stream):
    """The model sees the next one as following."""
    clip = CLIP[:, [0, 1, 4, 7]]
    np.testing.assert_allclose(run(stream, clip)[0], prefixes(small, clip), atol=1e-5)


def test_average_over_the_last_frames():
    """Of each frame's own logits; over as many as there are."""
    model = around(TemporalShift(4, causal=True))
    own, last, every = (run(streaming_model(model, average), CLIP)[0] for average in (1, 3, None))
    for number in range(FRAMES):
        np.testing.assert_allclose(last[number], own[max(number - 2, 0) : number + 1].mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(every[number], own[: number + 1].mean(axis=0), atol=1e-5)


def test_only_what_is_needed_is_kept():
    """Of the shift the moved eighth, of SELFY as many frames as it looks back."""
    options = {"backbone": "resnet10", "width": 8, "insert": {"res3": {"selfy": SELFY}}}
    state = streaming_model(network(options), average=1).initial_state(2, 64, 64)
    assert {name: value.shape for name, value in state.items()} == {
        "count": (2,),
        "res2_0_shift_shifted": (2, 1, 16, 16, 1),
        "res3_0_shift_shifted": (2, 1, 16, 16, 1),
        "res3_selfy_keys": (2, 3, 4, 4, 8),
        "res4_0_shift_shifted": (2, 1, 8, 8, 2),
        "res5_0_shift_shifted": (2, 1, 4, 4, 4),
    }


def test_a_frame_costs_its_share(small, stream):
    """Floating-point operations of a step: those of a long clip, divided by its frames."""
    shape, frames = (1, *CLIP.shape[2:]), 64
    state = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in stream.initial_state(*shape[:3]).items()}
    inputs = {"frame": tf.TensorSpec(shape, tf.uint8), **state}
    with portable():
        step = operations(lambda inputs: stream.model(inputs, training=False), inputs)
        clip = operations(lambda clip: small(clip, training=False), tf.TensorSpec((1, frames, *shape[1:]), tf.uint8))
    assert 0.95 < step / (clip / frames) < 1.1


def operations(function, spec):
    graph = tf.function(function).get_concrete_function(spec).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options = tf.compat.v1.profiler.ProfileOptionBuilder(options).with_empty_output().build()
    return tf.compat.v1.profiler.profile(graph, options=options).total_float_ops


def test_the_model_stays_what_it_was(small, steps, tmp_path):
    """It is written, read, and steps again, on other weights too: they are shared."""
    small.save(tmp_path / "model.keras")
    read = keras.models.load_model(tmp_path / "model.keras")
    stream = streaming_model(read)
    np.testing.assert_allclose(run(stream, CLIP)[0], steps, atol=1e-5)
    read.get_layer("logits").bias.assign_add(np.ones(CLASSES))
    np.testing.assert_allclose(run(stream, CLIP)[0], steps + 1, atol=1e-5)
    np.testing.assert_allclose(small(CLIP), steps[-1], atol=1e-5)


def test_weights_fit_both_forms():
    """By name and shape, all of them; what the two compute differs."""
    options = {"insert": {"res2": {"motion_squeeze": SQUEEZE}}, "temporal": "tsm"}
    for model in (NETWORKS["stm"], {**NETWORKS["stm"], **options}):
        offline, causal = network(model, causal=False), network(model)
        for weight in causal.weights:
            weight.assign(ops.zeros_like(weight))
        assert transfer_weights(offline, causal)[1] == []
        assert np.abs(causal(CLIP) - offline(CLIP)).max() > 0.01


def test_causal_shift_by_hand():
    frames = np.arange(2 * 3 * 5, dtype="float32").reshape(1, 3, 2, 1, 5) + 1
    moved, left = causal_shift(frames, 2)
    expected = frames.copy()
    expected[:, 1:, ..., 2:4], expected[:, 0, ..., 2:4] = frames[:, :-1, ..., 2:4], 0
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_array_equal(left, frames[:, -1:, ..., 2:4])
    np.testing.assert_array_equal(moved[..., 2:], temporal_shift(frames, 2)[..., 2:])


@pytest.mark.parametrize("kernel", ["channelwise", "ordinary", "frequency"])
def test_stm_is_the_offline_form_without_the_future(kernel):
    """K(1) counts for nothing over time; the differences are those of the frame before."""
    frames = sample((2, 4, 3, 5, 3))
    offline, causal = TemporalConv(kernel), TemporalConv(kernel, causal=True)
    for layer in (offline, causal):
        layer.build(frames.shape)
    if kernel == "frequency":
        before = np.concatenate([np.zeros_like(frames[:, :1]), frames[:, :-1]], axis=1)
        np.testing.assert_allclose(causal(frames), before + frames, atol=1e-6)
    else:
        randomize(causal)
        values = causal.values.numpy()
        values[2] = 0
        offline.values.assign(values)
        np.testing.assert_allclose(causal(frames), offline(frames), atol=1e-6)
    offline, causal = (MotionDifference(kernel, 2, causal=each) for each in (False, True))
    for layer in (offline, causal):
        layer.build(frames.shape)
        randomize(layer)
    np.testing.assert_allclose(causal(frames)[:, 1:], offline(frames)[:, :-1], atol=1e-6)
    assert not np.any(causal(frames)[:, 0])


@pytest.mark.parametrize("backward", [False, True])
def test_squeezed_motion_runs_forwards(backward):
    """What moves to the right has a positive displacement; a clip run backwards is its mirror image."""
    texture = sample((1, 9, 14, 4))
    clip = np.stack([texture[:, :, 5 - t : 11 - t] for t in range(4)], axis=1)
    offline, causal = (
        MotionSqueezeBlock(None, (5, 5), transform_channels=(4,), backward=backward, causal=each)
        for each in (False, True)
    )
    ahead, behind = offline.motion_features(clip[:, ::-1]), causal.motion_features(clip)
    np.testing.assert_allclose(behind["displacement"][:, 1:], -ahead["displacement"][:, :-1][:, ::-1], atol=1e-5)
    np.testing.assert_allclose(behind["confidence"][:, 1:], ahead["confidence"][:, :-1][:, ::-1], atol=1e-6)
    np.testing.assert_allclose(behind["similarity"][:, 1:], ahead["similarity"][:, :-1][:, ::-1], atol=1e-6)
    np.testing.assert_allclose(behind["displacement"][:, 1:, 2:-2, 2:-2, 0, 0], 1.0, atol=0.3)
    assert not np.any(behind["displacement"][:, 0])


def test_window():
    """Any model: the last frames as a clip, the first one repeated before there are enough; probabilities averaged."""
    model = network({"backbone": "resnet10", "width": 8, "insert": {"res3": "stm"}}, causal=False)
    found, _ = run(windowed_model(model, 4, average=2), CLIP)
    padded = np.concatenate([CLIP[:, :1]] * 3 + [CLIP], axis=1)
    scores = np.array([tf.nn.softmax(model(padded[:, t : t + 4], training=False)) for t in range(FRAMES)])
    expected = np.concatenate([scores[:1], (scores[1:] + scores[:-1]) / 2])
    np.testing.assert_allclose(tf.nn.softmax(found), expected, atol=1e-5)
    own, state = run(windowed_model(model, 1, average=1), CLIP[:, :2])
    np.testing.assert_allclose(own[1], tf.nn.log_softmax(model(CLIP[:, 1:2])), atol=1e-4)
    assert state.keys() == {"count"}


def test_what_sees_later_frames_is_refused():
    """Each by its name, with what to do."""
    cases = {
        "res2_0_shift": network({"backbone": "resnet10", "width": 8}, causal=False),
        "selfy_block": around(SELFYBlock(window=(3, 3), channels=4, name="selfy_block")),
        "non_local": around(NonLocalBlock(name="non_local")),
        "conv3d": around(Conv3DBN(4, 3, name="conv3d")),
    }
    for name, model in cases.items():
        with pytest.raises(ConfigError, match=rf"^{name} \(\w+\) .*windowed_model") as raised:
            streaming_model(model)
        assert ("model.causal: true" in str(raised.value)) == (name in ("res2_0_shift", "selfy_block"))
    twice, frames = ConvBN(3, 3), keras.Input((None, None, None, 3), dtype="uint8")
    features = ops.mean(twice(twice(NormalizeFrames()(frames))), axis=(2, 3))
    with pytest.raises(ConfigError, match="used twice"):
        streaming_model(keras.Model(frames, ops.mean(features, axis=1)))
    with pytest.raises(ValueError, match=r"average must .* Received: average=0"):
        streaming_model(cases["res2_0_shift"], average=0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"backbone": "i3d", "temporal": "3d"}, "i3d has no causal form"),
        ({"insert": {"res3": {"parallel": [{"selfy": {}}, {"motion_squeeze": {}}]}}}, "res3.selfy.temporal_offsets"),
        ({"insert": {"res3": ["selfy"]}}, r"must be 0 and less .* Received: \[-2, -1, 0, 1, 2\]"),
        ({"insert": {"res2": "non_local"}}, "insert.res2.non_local: has no causal form; .* selfy, motion_squeeze, stm"),
    ],
)
def test_config_refuses_what_is_not_causal(model, message):
    data = {"format": "clips", "root": ".", "annotations": "a.csv"}
    with pytest.raises(ConfigError, match=message):
        parse_config({"data": data, "model": {**model, "causal": True}})


def test_a_step_refuses_what_does_not_fit(stream):
    state = stream.initial_state(2, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match=r"frame must be uint8 .* Received: shape=\(2, 33, 40, 3\), dtype=float32"):
        stream.step(CLIP[:, 0].astype("float32"), state)
    with pytest.raises(ValueError, match="frame must be"):
        stream.step(CLIP, state)
    with pytest.raises(ValueError, match=r"count of shape \(1,\). Received: shape=\(2,\)"):
        stream.step(CLIP[:1, 0], state)
    with pytest.raises(ValueError, match="missing=\\['count'\\], unknown=\\['counter'\\]"):
        stream.step(CLIP[:, 0], {("counter" if name == "count" else name): value for name, value in state.items()})


# Runs apart, where neither Keras nor this package can be imported: argv is a SavedModel, LiteRT files, a clip, a file
# for the logits.
CLIENT = """
import sys
sys.modules["keras"] = sys.modules["keras_stss"] = None
import numpy as np
import tensorflow as tf

def run(step, state, clip):
    logits = []
    for frame in clip:
        state = dict(step(frame=frame[None], **state))
        logits.append(np.array(state.pop("logits")))
    return logits

saved, *files, clip, target = sys.argv[1:]
clip = np.load(clip)
signatures = tf.saved_model.load(saved).signatures
found = [run(signatures["serving_default"], signatures["initial_state"](batch=tf.constant(1)), clip)]
for file in files:
    step = tf.lite.Interpreter(file).get_signature_runner()
    details = step.get_input_details()
    state = {name: np.zeros(each["shape"], each["dtype"]) for name, each in details.items() if name != "frame"}
    found.append(run(step, state, clip))
np.save(target, found)
"""


def test_exports_do_the_same(stream, steps, tmp_path):
    """A SavedModel and a LiteRT file, in a process that knows nothing of this package."""
    saved = save_saved_model(stream, tmp_path / "models" / "1", HEIGHT, WIDTH)
    light = save_litert(stream, tmp_path / "step.tflite", HEIGHT, WIDTH)
    assert light["bytes"] == (tmp_path / "step.tflite").stat().st_size < saved["bytes"]
    assert max(saved["max_difference"], light["max_difference"]) < 1e-5
    np.save(tmp_path / "clip.npy", CLIP[1])
    command = [sys.executable, "-c", CLIENT, saved["file"], light["file"]]
    command += [str(tmp_path / "clip.npy"), str(tmp_path / "logits.npy")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-3000:]
    for logits in np.load(tmp_path / "logits.npy")[:, :, 0]:
        np.testing.assert_allclose(logits, steps[:, 1], atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.npy", "logits.npy", "models", "step.tflite"]
    for save, target in ((save_saved_model, saved["file"]), (save_litert, light["file"])):
        with pytest.raises(ConfigError, match="is there already"):
            save(stream, target, HEIGHT, WIDTH)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_exports_of_eight_bits_and_of_windows(tmp_path):
    """Weights of 8 bits are a fraction of the size, and differ; a window is exported alike. For a batch of its own."""
    stream = streaming_model(around(ConvBN(48, 3), ConvBN(48, 3), STMBlock(causal=True)))
    light, lighter = (
        save_litert(stream, tmp_path / f"{int8}.tflite", 16, 24, batch=3, int8=int8) for int8 in (False, True)
    )
    assert lighter["bytes"] < 0.5 * light["bytes"] and light["max_difference"] < 1e-5 < lighter["max_difference"]
    window = save_litert(windowed_model(around(STMBlock()), 4), tmp_path / "window.tflite", 16, 24, batch=3)
    step = tf.lite.Interpreter(window["file"]).get_signature_runner()
    assert step.get_input_details()["window_frames"]["shape"].tolist() == [3, 3, 16, 24, 3]


def test_nothing_is_left_of_an_export_that_differs(tmp_path, monkeypatch):
    stream = streaming_model(around(TemporalShift(4, causal=True)))
    monkeypatch.setattr("keras_stss.streaming._run_saved_model", lambda *_: (np.ones(3), np.full(3, np.nan)))
    with pytest.raises(RuntimeError, match="nothing was written to"):
        save_saved_model(stream, tmp_path / "model", HEIGHT, WIDTH)
    assert list(tmp_path.iterdir()) == []
