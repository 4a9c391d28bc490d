"""MotionSqueeze: the displacement operation against plain float64 NumPy, and the block against the authors' numbers."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_stss
from keras_stss.blocks import MotionSqueezeBlock
from keras_stss.config import ConfigError, parse_config
from keras_stss.layers import SeparableConvBN
from keras_stss.ops import displacement, kernel_soft_argmax
from keras_stss.ops.dispatch import why_not_native

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "motion_squeeze_block.npz"
WITHOUT = why_not_native("displacement")

NATIVE = pytest.param("native", marks=pytest.mark.skipif(WITHOUT is not None, reason=str(WITHOUT)))
needs_native = NATIVE.marks[0]
IMPLEMENTATION = pytest.mark.parametrize("implementation", [NATIVE, "reference"])

#: Largest error of an element, forward and gradient: forward absolute, gradient relative to its largest element. The
#: softmax's exponents go to 100 and carry an error of that many units in the last place of float32; of half
#: precision only the result's own rounding is left.
FORWARD = {"float32": 2e-5, "float16": 6e-4, "bfloat16": 4.5e-3}
GRADIENT = {"float32": 1e-4, "float16": 6e-4, "bfloat16": 4.5e-3}

#: (B, T, H, W, C), temporal offsets, (U, V), similarity, sigma, temperature.
TABLE = {
    "default": ((1, 3, 9, 10, 17), (1,), (15, 15), "cosine", 5.0, 0.01),
    "several offsets": ((2, 4, 5, 4, 6), (-2, 1, 0), (3, 5), "cosine", 2.0, 0.02),
    "plain soft-argmax": ((1, 2, 6, 5, 8), (1,), (5, 3), "cosine", None, 0.05),
    "dot": ((1, 2, 6, 7, 3), (1,), (5, 5), "dot", 3.0, 0.5),
    "one frame": ((2, 1, 4, 3, 4), (1,), (3, 3), "cosine", 5.0, 0.01),
    "window beyond the map": ((1, 2, 2, 3, 5), (1,), (9, 21), "cosine", 5.0, 0.1),
    "one position": ((1, 3, 1, 1, 4), (1, -1), (3, 3), "cosine", 5.0, 0.01),
    "upright window": ((1, 2, 7, 3, 4), (1,), (5, 1), "cosine", 1.0, 0.1),
    "flat window": ((1, 2, 3, 9, 4), (-1,), (1, 7), "cosine", 1.0, 0.1),
    "one-pixel window": ((1, 2, 3, 2, 4), (1,), (1, 1), "cosine", 1.0, 0.1),
    "offset beyond the clip": ((1, 2, 3, 3, 4), (5, 1), (3, 3), "cosine", 1.0, 0.1),
    "rows in two parts": ((1, 2, 19, 3, 16), (1,), (7, 3), "cosine", 2.0, 0.05),
}
CASES = pytest.mark.parametrize("case", TABLE.values(), ids=TABLE.keys())


def sample(shape, dtype="float64", seed=0):
    """Random numbers that the dtype holds exactly, as float64."""
    values = tf.cast(np.random.default_rng(seed).normal(size=shape), dtype)
    return tf.cast(values, "float64").numpy()


def unit(features, similarity):
    root = np.sqrt(np.sum(features**2, axis=-1, keepdims=True) + 1e-6) if similarity == "cosine" else 1.0
    return features / root, root


def by_hand(features, offsets, window, similarity, sigma, temperature, upstream=None):
    """(result, gradient): every position on its own, float64."""
    vectors, root = unit(features, similarity)
    _, time, height, width, _ = features.shape
    reach = np.array(window) // 2
    places = np.stack(np.meshgrid(*(np.arange(side) - side // 2 for side in window), indexing="ij"), -1)  # (U, V, 2)
    result = np.zeros((*features.shape[:4], len(offsets), 3))
    gradient = np.zeros_like(vectors)
    for b, t, y, x, number in itertools.product(*map(range, result.shape[:5])):
        other = t + offsets[number]
        if not 0 <= other < time:
            continue
        scores = np.zeros(window)
        for i, j in np.ndindex(*window):
            row, column = y + i - reach[0], x + j - reach[1]
            if 0 <= row < height and 0 <= column < width:
                scores[i, j] = max(vectors[b, t, y, x] @ vectors[b, other, row, column], 0.0)
        best = np.unravel_index(scores.argmax(), window)
        kernel = np.ones(window)
        if sigma is not None:
            kernel = np.exp(-np.sum((places - places[best]) ** 2, -1) / (2 * sigma**2))
        weights = np.exp((kernel * scores - scores[best]) / temperature)
        weights /= weights.sum()
        directions = (places / np.maximum(reach, 1))[..., ::-1]  # horizontal, vertical
        expected = np.sum(weights[..., None] * directions, (0, 1))
        result[b, t, y, x, number] = [*expected, scores[best]]
        if upstream is None:
            continue
        ours = upstream[b, t, y, x, number]
        slope = kernel / temperature * weights * ((directions - expected) @ ours[:2])
        slope[best] += ours[2]
        for i, j in np.argwhere(scores > 0.0):
            place = b, other, y + i - reach[0], x + j - reach[1]
            gradient[b, t, y, x] += slope[i, j] * vectors[place]
            gradient[place] += slope[i, j] * vectors[b, t, y, x]
    if similarity == "cosine":
        gradient = (gradient - vectors * np.sum(vectors * gradient, axis=-1, keepdims=True)) / root
    return result, gradient


def gradient_of(function, inputs, upstream):
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = function(inputs)
    return tape.gradient(outputs, inputs, output_gradients=tf.cast(upstream, outputs.dtype))


@CASES
@IMPLEMENTATION
@pytest.mark.parametrize("dtype", FORWARD)
def test_displacement_and_gradient(case, implementation, dtype):
    (shape, offsets, *rest) = case
    features = sample(shape, dtype)
    upstream = sample((*shape[:4], len(offsets), 3), dtype, seed=1)
    expected, expected_gradient = by_hand(features, offsets, *rest, upstream)

    def function(inputs):
        return displacement(inputs, offsets, *rest, implementation)

    found = function(tf.cast(features, dtype))
    assert found.dtype == dtype
    scale = max(np.abs(expected).max(), 1.0)
    np.testing.assert_allclose(tf.cast(found, "float64"), expected, rtol=0, atol=FORWARD[dtype] * scale)
    found = gradient_of(function, tf.cast(features, dtype), upstream)
    assert found.dtype == dtype
    # Where every part along the vector cancels (one channel would do), the size of what cancels counts.
    scale = max(np.abs(expected_gradient).max(), 1e-2)
    np.testing.assert_allclose(tf.cast(found, "float64"), expected_gradient, rtol=0, atol=GRADIENT[dtype] * scale)


def test_the_formula_of_the_gradient_is_the_slope():
    """What the gradients above are held to, against central differences of the definition."""
    arguments = ((1, 0), (5, 3), "cosine", 2.0, 0.1)
    features, step = sample((1, 2, 3, 4, 3)), 1e-6
    upstream = sample((1, 2, 3, 4, 2, 3), seed=1)
    _, gradient = by_hand(features, *arguments, upstream)
    for place in np.random.default_rng(2).permutation(list(np.ndindex(features.shape)))[:25]:
        losses = []
        for sign in (1, -1):
            moved = features.copy()
            moved[tuple(place)] += sign * step
            losses.append(np.sum(by_hand(moved, *arguments)[0] * upstream))
        assert gradient[tuple(place)] == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5, abs=1e-6)


@needs_native
@pytest.mark.parametrize("seed", range(12))
def test_native_is_the_reference(seed):
    """Random shapes, offsets and windows."""
    rng = np.random.default_rng(seed)
    shape = [int(rng.integers(1, limit)) for limit in (3, 5, 35, 20, 70)]
    window = (2 * rng.integers(0, 11, 2) + 1).tolist()
    offsets = rng.permutation(np.arange(-3, 4))[: rng.integers(1, 4)].tolist()
    arguments = (offsets, window, "cosine", rng.uniform(0.5, 8.0), rng.uniform(0.02, 0.3))
    features = tf.cast(sample(shape, seed=seed), "float32")
    upstream = sample((*shape[:4], len(offsets), 3), seed=seed + 100)
    outputs, gradients = [], []
    for implementation in ("native", "reference"):

        def function(inputs, implementation=implementation):
            return displacement(inputs, *arguments, implementation)

        outputs.append(function(features).numpy())
        gradients.append(gradient_of(function, features, upstream).numpy())
    np.testing.assert_allclose(*outputs, rtol=0, atol=FORWARD["float32"])
    scale = max(np.abs(gradients[1]).max(), 1.0)
    np.testing.assert_allclose(*gradients, rtol=0, atol=GRADIENT["float32"] * scale)


@IMPLEMENTATION
def test_the_first_of_equal_maxima_counts(implementation):
    """All positions alike: the kernel stands on the window's first place inside the map, and so does the gradient."""
    features = tf.ones((1, 2, 3, 3, 1))
    arguments = ((1,), (3, 3), "dot", 1.0, 0.5)
    upstream = np.zeros((1, 2, 3, 3, 1, 3))
    upstream[0, 0, 1, 1, 0, 2] = 1.0  # the confidence of the middle
    expected, expected_gradient = by_hand(features.numpy().astype("float64"), *arguments, upstream)
    found = displacement(features, *arguments, implementation)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0, 0, 1, 1, 0, 0] < -0.2
    gradient = gradient_of(lambda x: displacement(x, *arguments, implementation), features, upstream).numpy()
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)
    assert gradient[0, 1, 0, 0, 0] == 1.0
    assert np.count_nonzero(gradient) == 2


@IMPLEMENTATION
def test_nothing_alike_is_no_displacement(implementation):
    """Where nothing is above zero all places weigh the same and no gradient flows; nor into frames without partner."""
    features = np.ones((1, 2, 5, 5, 3), "float32")
    features[:, 1] = -1.0
    upstream = np.ones((1, 2, 5, 5, 1, 3))

    def function(inputs):
        return displacement(inputs, window=(3, 3), implementation=implementation)

    np.testing.assert_allclose(function(tf.constant(features)), np.zeros((1, 2, 5, 5, 1, 3)), atol=1e-7)
    np.testing.assert_array_equal(gradient_of(function, tf.constant(features), upstream), np.zeros(features.shape))


@IMPLEMENTATION
def test_a_shifted_picture_is_found(implementation):
    """A picture moved by (2 down, 3 left): every position whose goal is inside the map says so, with confidence 1."""
    picture = sample((1, 1, 12, 12, 32)).astype("float32")
    moved = np.roll(picture, (2, -3), axis=(2, 3))
    found = displacement(np.concatenate([picture, moved], 1), window=(7, 9), implementation=implementation).numpy()
    inside = found[0, 0, :10, 3:, 0]
    np.testing.assert_allclose(inside[..., 0], -3 / 4, atol=0.05)
    np.testing.assert_allclose(inside[..., 1], 2 / 3, atol=0.05)
    np.testing.assert_allclose(inside[..., 2], 1.0, atol=1e-5)


@needs_native
def test_a_nan_stays_where_it_is_seen():
    features = sample((1, 3, 12, 12, 5)).astype("float32")
    clean = displacement(features, window=(5, 5), implementation="native").numpy()
    features[0, 1, 6, 6] = np.nan
    found = displacement(features, window=(5, 5), implementation="native").numpy()
    seen = np.zeros((1, 3, 12, 12, 1, 3), bool)
    seen[0, 0, 4:9, 4:9] = seen[0, 1, 6, 6] = True
    assert np.isnan(found[seen]).all()
    np.testing.assert_array_equal(found[~seen], clean[~seen])


@IMPLEMENTATION
def test_unknown_sizes(implementation):
    """One traced function serves any size, and what is known of the shape is known before it runs."""

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, None, None), tf.float32)])
    def function(features):
        outputs = displacement(features, (1, -1), (3, 5), implementation=implementation)
        shapes.append(outputs.shape)
        return outputs, tf.gradients(outputs, features)[0]

    shapes = []
    for shape in [(2, 3, 6, 5, 4), (1, 1, 2, 9, 3), (0, 3, 4, 4, 2)]:
        features = sample(shape).astype("float32")
        outputs, gradient = function(features)
        assert gradient.shape == shape
        np.testing.assert_allclose(
            outputs, displacement(features, (1, -1), (3, 5), implementation=implementation), atol=1e-5
        )
    assert len(shapes) == 1
    assert shapes[0][-2:] == (2, 3)
    assert shapes[0].rank == 6


@needs_native
def test_raw_operation_refuses():
    from keras_stss.ops.native import library

    raw = library.load()
    good = {"temporal_offsets": [1], "window": [3, 3], "cosine": True, "sigma": 1.0, "temperature": 1.0}
    features, gradient = tf.zeros((1, 2, 3, 3, 4)), tf.zeros((1, 2, 3, 3, 1, 3))
    for name, value in {
        "temporal_offsets": [],
        "window": [3, 4],
        "sigma": 0.0,
        "temperature": -1.0,
    }.items():
        with pytest.raises(tf.errors.InvalidArgumentError, match=name):
            raw.keras_stss_displacement(features=features, **{**good, name: value})
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"\(B, T, H, W, C\)"):
        raw.keras_stss_displacement(features=features[0], **good)
    with pytest.raises(tf.errors.InvalidArgumentError, match="gradient must have shape"):
        raw.keras_stss_displacement_grad(features=features, gradient=gradient[:, :1], **good)
    with pytest.raises(ValueError, match="Shape must be rank 5"):
        tf.function(lambda x: raw.keras_stss_displacement(features=x, **good))(features[0])


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({"sigma": 0.0}, "sigma=0.0"),
        ({"sigma": "wide"}, "sigma='wide'"),
        ({"temperature": None}, "temperature=None"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"sigma": 1e-50}, "sigma=1e-50"),
        ({"window": (4, 3)}, r"window=\(4, 3\)"),
        ({"window": (1, 40001)}, r"window=\(1, 40001\)"),
        ({"implementation": "fast"}, "implementation='fast'"),
    ],
)
def test_displacement_refuses(arguments, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        displacement(np.zeros((1, 2, 3, 3, 4), "float32"), **arguments)
    with pytest.raises(ValueError, match=r"\(B, T, H, W, C\)"):
        displacement(np.zeros((1, 2, 3, 4), "float32"))


@needs_native
def test_second_order_is_refused():
    features = tf.constant(sample((1, 2, 3, 3, 4)).astype("float32"))
    with tf.GradientTape() as outer:
        outer.watch(features)
        with tf.GradientTape() as inner:
            inner.watch(features)
            loss = tf.reduce_sum(displacement(features, implementation="native"))
        gradient = inner.gradient(loss, features)
    with pytest.raises(NotImplementedError, match="implementation='reference'"):
        outer.gradient(gradient, features)


#: Writes outputs and gradients, and by how much a large window raises the peak of the process's memory (MiB).
PROGRAM = """
import resource, sys
import numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
from keras_stss.ops import displacement

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def run(shape, window):
    features = tf.constant(np.random.default_rng(0).normal(size=shape).astype("float32"))
    upstream = tf.constant(np.random.default_rng(1).normal(size=(*shape[:4], 1, 3)).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(features)
        outputs = displacement(features, window=window, implementation="native")
    return outputs.numpy(), tape.gradient(outputs, features, output_gradients=upstream).numpy()

outputs, gradient = run((1, 5, 20, 9, 19), (7, 15))
before = peak()
run((1, 2, 64, 64, 8), (63, 63))
np.savez(sys.argv[1], outputs=outputs, gradient=gradient, growth=peak() - before)
"""


@needs_native
def test_one_thread_and_no_volume(tmp_path):
    """Another process with a single thread: the same bytes as here, and no memory as large as the volume.

    The volume of the large window takes 124 MiB, and its gradient as much.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "alone.npz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    features = tf.constant(sample((1, 5, 20, 9, 19)).astype("float32"))
    upstream = sample((1, 5, 20, 9, 1, 3), seed=1)

    def function(inputs):
        return displacement(inputs, window=(7, 15), implementation="native")

    with np.load(tmp_path / "alone.npz") as alone:
        np.testing.assert_array_equal(alone["outputs"], function(features))
        np.testing.assert_array_equal(alone["gradient"], gradient_of(function, features, upstream))
        assert 0 <= alone["growth"] < 0.25 * (2 * 64 * 64 * 63 * 63 * 4 / 2**20)


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers(sanitizer, tmp_path):
    """The CPU kernels without TensorFlow: buffers of exact size, the same bytes in any order of work, and every
    instruction set that the machine has against the plain one."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("no C++ compiler")
    from keras_stss.ops.native import build

    sources = ROOT / "keras_stss" / "ops" / "cc"
    flags = ["-std=c++17", "-O1", "-g", "-ffp-contract=fast", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    flags += [f"-I{sources}", "-pthread"]
    probe = tmp_path / "probe.cc"
    probe.write_text("int main() { return 0; }\n")
    if subprocess.run([compiler, *flags, str(probe), "-o", str(tmp_path / "probe")], capture_output=True).returncode:
        pytest.skip(f"{compiler} has no {sanitizer} sanitizer")
    sets = build._instruction_sets()
    jobs = [[*extra, f"-DKERAS_STSS_ISA={isa}", str(sources / "displacement_cpu.cc")] for isa, extra in sets.items()]
    jobs.append(["-DKERAS_STSS_ISA=plain", str(ROOT / "tests" / "cc" / "displacement_sanitize.cc")])
    running = []
    for number, job in enumerate(jobs):
        command = [compiler, *flags, *job, "-c", "-o", str(tmp_path / f"{number}.o")]
        running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    program = tmp_path / "program"
    objects = [str(tmp_path / f"{number}.o") for number in range(len(jobs))]
    subprocess.run([compiler, *flags, *objects, "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stdout + done.stderr


# The block.


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as numbers:
        return {name: numbers[name] for name in numbers.files}


def frames(golden, name, clips=2):
    """(clips·frames, C, H, W) → (clips, T, H, W, C)."""
    maps = golden[name].transpose(0, 2, 3, 1)
    return maps.reshape(clips, -1, *maps.shape[1:])


def authors(golden, **arguments):
    """The block with the authors' weights: their entries in our order once the reduction, the last, comes first."""
    block = MotionSqueezeBlock(**arguments)
    block.build((None, None, None, None, 128))
    names = [name for name in golden if name.startswith("weight:")]
    names.sort(key=lambda name: "chnl_reduction" not in name)
    values = []
    for name in names:
        value = golden[name]
        if value.ndim == 4:
            # Depthwise kernels hold (channels, 1, …), which become (…, channels, 1).
            value = value.transpose((2, 3, 0, 1) if value.shape[2] > 1 else (2, 3, 1, 0))
        values.append(value)
    block.set_weights(values)
    return block


@IMPLEMENTATION
def test_authors_numbers(golden, implementation):
    block = authors(golden, implementation=implementation)
    np.testing.assert_allclose(block.reduce(frames(golden, "input")), frames(golden, "reduced"), rtol=2e-6, atol=2e-6)
    found = block.displacement(frames(golden, "reduced")).numpy()[:, :-1, ..., 0, :]
    assert np.abs(frames(golden, "flow")).max() > 0.9
    np.testing.assert_allclose(found[..., :2], frames(golden, "flow"), atol=2e-6)
    np.testing.assert_allclose(found[..., 2:], frames(golden, "confidence"), atol=2e-6)
    outputs = block(frames(golden, "input")).numpy()
    motion = frames(golden, "output") - frames(golden, "input")
    assert np.abs(motion).max() > 0.5
    np.testing.assert_allclose(outputs, frames(golden, "output"), atol=2e-6)


def test_kernel_soft_argmax_of_the_authors_volume(golden):
    volume = golden["correlation"].reshape(6, 15, 15, 14, 12).transpose(0, 3, 4, 1, 2)  # (pairs, H, W, U, V)
    found = kernel_soft_argmax(volume).numpy()
    np.testing.assert_allclose(found[..., :2], golden["flow"].transpose(0, 2, 3, 1), atol=2e-6)
    np.testing.assert_array_equal(found[..., 2:], golden["confidence"].transpose(0, 2, 3, 1))


SMALL = {"channels": 6, "window": (5, 3), "temperature": 0.05, "transform_channels": (4, 5)}


@pytest.mark.parametrize("time", [1, 2, 4])
@pytest.mark.parametrize("channels", [6, None])
def test_last_frame_repeats_the_one_before(time, channels):
    inputs = sample((2, time, 5, 6, 7)).astype("float32")
    block = MotionSqueezeBlock(**{**SMALL, "channels": channels})
    motion = block(inputs, training=True).numpy() - inputs
    assert motion.shape == inputs.shape
    assert motion.min() > -1e-6
    assert motion.max() > 0.1 or time == 1
    if time > 1:
        np.testing.assert_allclose(motion[:, -1], motion[:, -2], atol=1e-6)
    if time > 2:
        assert np.abs(motion[:, -2] - motion[:, -3]).max() > 0.1


@IMPLEMENTATION
def test_every_weight_learns(implementation):
    block, inputs = (
        MotionSqueezeBlock(**SMALL, implementation=implementation),
        sample((2, 3, 8, 8, 5)).astype("float32"),
    )
    block(inputs)
    with tf.GradientTape() as tape:
        outputs = block(inputs, training=True)
        loss = tf.reduce_sum(outputs * tf.cast(sample(outputs.shape, seed=1), "float32"))
    weights = block.trainable_weights
    assert len(weights) == 3 + 3 * 6
    for weight, gradient in zip(weights, tape.gradient(loss, [weight.value for weight in weights])):
        assert np.isfinite(gradient).all(), weight.path
        assert np.abs(gradient).max() > 1e-6, weight.path


def test_compiled_step():
    """XLA compiles a training step of the block, in which the reference takes the native operation's place."""
    inputs = keras.Input(batch_shape=(2, 3, 5, 6, 4))
    model = keras.Model(inputs, MotionSqueezeBlock(**{**SMALL, "transform_channels": (4,)})(inputs))
    before = model.get_weights()
    model.compile("sgd", "mse", jit_compile=True)
    samples = [sample((2, 3, 5, 6, 4), seed=seed).astype("float32") for seed in (0, 1)]
    assert np.isfinite(model.train_on_batch(*samples))
    # A scale between a normalisation and the next one makes no difference while the shift between them is zero.
    still = [weight.path for weight, old in zip(model.weights, before) if np.array_equal(weight, old)]
    assert all(path.endswith("gamma") for path in still)


def test_separable_conv_by_hand():
    """Zeros alike on both sides, one kernel a channel, then the product over channels."""
    layer, inputs = SeparableConvBN(3, (5, 3), activation=None), sample((2, 3, 6, 4, 2)).astype("float32")
    layer.build(inputs.shape)
    kernel, pointwise = layer.depthwise.kernel.numpy()[..., 0], layer.pointwise.conv.kernel.numpy()[0, 0]
    padded = np.pad(inputs, ((0, 0), (0, 0), (2, 2), (1, 1), (0, 0)))
    maps = sum(padded[:, :, i : i + 6, j : j + 4] * kernel[i, j] for i, j in np.ndindex(5, 3))
    expected = (maps / np.sqrt(1 + 1e-5)) @ pointwise / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(layer(inputs), expected, rtol=1e-4, atol=1e-5)


def values(**block):
    return {
        "data": {"format": "clips", "root": ".", "annotations": "a.csv", "frames": 4, "resize": 40, "crop": 32},
        "model": {"backbone": "resnet18", "width": 8, "insert": {"res3": block}},
    }


def test_model_from_a_config():
    """MSNet: the block after res3 of a TSM-ResNet, and beside SELFY in the order of the names."""
    model = keras_stss.build_model(parse_config(values(motion_squeeze={**SMALL, "sigma": None})), classes=5)
    block = model.get_layer("res3_motion_squeeze")
    assert isinstance(block, MotionSqueezeBlock)
    assert (block.sigma, block.channels, tuple(block.window)) == (None, 6, (5, 3))
    assert model(np.zeros((1, 3, 32, 40, 3), np.uint8)).shape == (1, 5)
    both = parse_config(values(motion_squeeze={}, selfy={"channels": 4, "window": [3, 3]}))
    names = [layer.name for layer in keras_stss.build_model(both, classes=5).layers if "res3_" in layer.name]
    assert names[-2:] == ["res3_selfy", "res3_motion_squeeze"]
    assert parse_config(values(motion_squeeze={})).model.insert["res3"].motion_squeeze.transform_channels == (
        16,
        32,
        64,
    )


def test_the_size_of_msnet():
    """Trainable weights of the block at res3 of a ResNet-18, counted by hand."""
    block = MotionSqueezeBlock()
    block.build((None, None, None, None, 128))
    expected = 128 * 64 + 2 * 64
    for area, before, after in [(49, 3, 16), (9, 16, 32), (9, 32, 64), (9, 64, 128)]:
        expected += area * before + 2 * before + before * after + 2 * after
    assert sum(int(np.prod(weight.shape)) for weight in block.trainable_weights) == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": [15, 14]}, "sides must be odd"),
        ({"sigma": 0}, "sigma"),
        ({"chanels": 3}, "Did you mean channels"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_config_refuses(options, says):
    with pytest.raises(ConfigError, match=says):
        parse_config(values(motion_squeeze=options))
