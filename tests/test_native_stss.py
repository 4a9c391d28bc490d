"""The compiled self-similarity against its definition in float64, on every path that the CPU kernels have."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import keras_stss
from keras_stss.ops.native import build, library
from keras_stss.ops.native.stss import stss

REASON = library.why_not("stss")
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no native stss: {REASON}")

HERE = Path(__file__).resolve().parent
FOUND = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""

#: Largest error allowed, as a part of the largest value: of the volume, of the gradient. Half precision is held to
#: the float64 result for its own rounded inputs, so what is left is the rounding of the result.
TOLERANCE = {
    "float32": (1e-6, 2e-6),
    "float16": (6e-4, 1e-3),
    "bfloat16": (5e-3, 8e-3),
}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

# (B, T, H, W, C), temporal offsets, window
CASES = [
    ((2, 3, 5, 7, 17), (-2, -1, 0, 1, 2), (3, 5)),
    ((1, 4, 14, 14, 128), (-2, -1, 0, 1, 2), (9, 9)),
    ((1, 2, 28, 28, 64), (1,), (15, 15)),
    ((2, 1, 9, 11, 33), (0,), (3, 9)),  # T = 1
    ((1, 1, 6, 6, 8), (0, 1, -1), (5, 5)),  # no other frame
    ((1, 6, 5, 5, 3), (-3, 5), (9, 3)),  # offsets far apart, on no side alike
    ((1, 4, 4, 6, 16), (4,), (3, 3)),  # all outside the clip
    ((2, 3, 4, 6, 16), (7, 0, -3, -100), (3, 3)),
    ((1, 3, 7, 6, 1), (1, 0), (1, 1)),
    ((1, 3, 4, 5, 6), tuple(range(-35, 36)), (3, 3)),  # more offsets than an operation is given at once
    ((1, 2, 3, 4, 20), (0, 1), (13, 31)),  # a window larger than the map
    ((1, 2, 1, 50, 24), (0, -1), (3, 7)),
    ((1, 2, 50, 1, 24), (0, 1), (7, 3)),
    ((1, 2, 4, 70, 40), (1, -1), (3, 5)),  # rows that are longer than the band's storage
    ((0, 3, 5, 7, 4), (0, 1), (3, 3)),
    ((2, 3, 0, 7, 4), (0, 1), (3, 3)),
    ((2, 3, 5, 0, 4), (0, 1), (3, 3)),
    ((2, 2, 3, 3, 0), (0, 1), (3, 3)),
]


def pairs(shape, offsets, window):
    """Slices (query, key, place in the volume) of all pairs that lie inside the clip."""
    _, time, height, width, _ = shape

    def overlap(size, move):
        begin, end = max(0, -move), min(size, size - move)
        return (slice(begin, end), slice(begin + move, end + move)) if begin < end else None

    for index, offset in enumerate(offsets):
        for row in range(window[0]):
            for column in range(window[1]):
                moves = (offset, row - window[0] // 2, column - window[1] // 2)
                cuts = [overlap(size, move) for size, move in zip((time, height, width), moves)]
                if None not in cuts:
                    query, key = ((slice(None), *side) for side in zip(*cuts))
                    yield query, key, (*query, index, row, column)


def normalized(features, similarity):
    """The vectors that are compared, and the factor that made them, in float64."""
    features = features.astype(np.float64)
    if similarity == "dot":
        return features, np.ones((*features.shape[:4], 1))
    factor = 1 / np.sqrt(np.sum(features**2, -1, keepdims=True) + 1e-6)
    return features * factor, factor


def volume_of(features, offsets, window, similarity):
    """The definition, one displacement at a time, in float64."""
    vectors, _ = normalized(features, similarity)
    volume = np.zeros((*features.shape[:4], len(offsets), *window))
    for query, key, place in pairs(features.shape, offsets, window):
        volume[place] = np.sum(vectors[query] * vectors[key], -1)
    return volume


def gradient_of(features, gradient, offsets, window, similarity):
    """The gradient of sum(volume * gradient), in float64."""
    vectors, factor = normalized(features, similarity)
    gradient, total = gradient.astype(np.float64), np.zeros(vectors.shape)
    for query, key, place in pairs(features.shape, offsets, window):
        total[query] += gradient[place][..., None] * vectors[key]
        total[key] += gradient[place][..., None] * vectors[query]
    if similarity == "dot":
        return total
    return factor * (total - vectors * np.sum(vectors * total, -1, keepdims=True))


def native(features, gradient, offsets, window, similarity):
    """(volume, gradient of sum(volume * gradient)) of the compiled operation, as NumPy arrays."""
    features = tf.convert_to_tensor(features)
    with tf.GradientTape() as tape:
        tape.watch(features)
        volume = stss(features, offsets, window, similarity)
    result = tape.gradient(volume, features, tf.convert_to_tensor(gradient))
    return volume.numpy(), result.numpy()


def random_inputs(shape, offsets, window, dtype, seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=shape).astype(DTYPES[dtype])
    return features, rng.normal(size=(*shape[:4], len(offsets), *window)).astype(DTYPES[dtype])


def check(shape, offsets, window, similarity, dtype, seed=0):
    features, gradient = random_inputs(shape, offsets, window, dtype, seed)
    volume, result = native(features, gradient, offsets, window, similarity)
    assert volume.dtype == features.dtype and result.dtype == features.dtype
    wanted = volume_of(features, offsets, window, similarity)
    wanted_result = gradient_of(features, gradient, offsets, window, similarity)
    for found, expected, tolerance in zip((volume, result), (wanted, wanted_result), TOLERANCE[dtype]):
        assert found.shape == expected.shape
        error = np.abs(found.astype(np.float64) - expected).max(initial=0)
        assert error <= tolerance * np.abs(expected).max(initial=0), (shape, offsets, window, similarity, dtype)


# -- exactness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize(("shape", "offsets", "window"), CASES)
def test_agrees_with_the_definition(shape, offsets, window, similarity, dtype):
    check(shape, offsets, window, similarity, dtype)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_the_definition_s_gradient_is_its_derivative(similarity):
    """Guards the oracle: central differences of the float64 loop."""
    offsets, window = (-1, 0, 2), (3, 5)
    rng = np.random.default_rng(1)
    features, move = rng.normal(size=(2, 1, 3, 4, 5, 6))
    gradient = rng.normal(size=(1, 3, 4, 5, 3, 3, 5))
    step = 1e-5
    ends = [np.sum(volume_of(features + s * step * move, offsets, window, similarity) * gradient) for s in (1, -1)]
    slope = np.sum(gradient_of(features, gradient, offsets, window, similarity) * move)
    np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-7)


def test_random_shapes():
    rng = np.random.default_rng(2)
    for seed in range(60):
        shape = tuple(int(rng.integers(1, most)) for most in (3, 6, 12, 40, 70))
        offsets = tuple(map(int, rng.permutation(np.arange(-5, 6))[: rng.integers(1, 5)]))
        window = tuple(int(2 * rng.integers(0, most) + 1) for most in (6, 12))
        check(shape, offsets, window, rng.choice(["cosine", "dot"]), rng.choice(list(TOLERANCE)), seed)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_small_and_large_vectors(scale):
    """The cosine's epsilon is inside the root and keeps vectors of zeros from being divided by nothing."""
    features, gradient = random_inputs((1, 2, 4, 5, 16), (0, 1), (3, 3), "float32", 3)
    features = features * np.float32(scale)
    volume, result = native(features, gradient, (0, 1), (3, 3), "cosine")
    for found, expected in (
        (volume, volume_of(features, (0, 1), (3, 3), "cosine")),
        (result, gradient_of(features, gradient, (0, 1), (3, 3), "cosine")),
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max(initial=0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("shape", [(1, 3, 6, 18, 16), (1, 2, 5, 7, 5)])
def test_a_bad_position_spoils_its_own_pairs_only(shape, similarity, value):
    offsets, window = (-1, 0, 2), (3, 5)
    features, gradient = random_inputs(shape, offsets, window, "float32", 4)
    bad, place = features.copy(), (0, 1, 2, 0)
    bad[place] = value
    volume, result = native(features, gradient, offsets, window, similarity)
    spoilt, spoilt_result = native(bad, gradient, offsets, window, similarity)
    touched, near = np.zeros(volume.shape, bool), np.zeros(shape[:4], bool)
    mark = np.zeros(shape[:4], bool)
    mark[place] = True
    for query, key, at in pairs(shape, offsets, window):
        hit = mark[query] | mark[key]
        touched[at] = hit
        near[query] |= hit
        near[key] |= hit
    assert 0 < touched.sum() < touched.size and 0 < near.sum() < near.size
    np.testing.assert_array_equal(spoilt[~touched], volume[~touched])
    np.testing.assert_array_equal(spoilt_result[~near], result[~near])
    if np.isnan(value):
        assert np.isnan(spoilt[touched]).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_of_values_outside_the_clip_are_ignored(dtype):
    shape, offsets, window = (1, 3, 5, 18, 16), (-1, 0, 2, 3), (3, 5)
    features, gradient = random_inputs(shape, offsets, window, dtype, 5)
    inside = np.zeros(gradient.shape, bool)
    for _, _, place in pairs(shape, offsets, window):
        inside[place] = True
    _, expected = native(features, np.where(inside, gradient, 0).astype(gradient.dtype), offsets, window, "cosine")
    _, found = native(features, np.where(inside, gradient, np.nan).astype(gradient.dtype), offsets, window, "cosine")
    np.testing.assert_array_equal(found, expected)


# -- threads, instruction sets, sanitizers -----------------------------------------------------------------------------

RUN = """
import sys, numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[2]))
native, found = tf.load_op_library(sys.argv[1]), {}
rng = np.random.default_rng(6)
for number, (shape, offsets, window) in enumerate([((2, 4, 14, 14, 40), (-2, -1, 0, 1, 2), (5, 9)),
                                                   ((1, 3, 28, 28, 17), (1,), (9, 15))]):
    settings = dict(features=tf.constant(rng.normal(size=shape), "float32"), temporal_offsets=offsets, window=window)
    for cosine in (False, True):
        volume = native.keras_stss_stss(**settings, cosine=cosine)
        gradient = tf.constant(np.random.default_rng(7).normal(size=volume.shape), "float32")
        found[f"{number}, {cosine}: volume"] = volume
        found[f"{number}, {cosine}: gradient"] = native.keras_stss_stss_grad(
            **settings, gradient=gradient, cosine=cosine)
np.savez(sys.argv[3], **found)
"""


def has(isa):
    """Whether this processor runs an instruction set's kernels."""
    return isa == "plain" or all(flag in FOUND.split() for flag in {"avx2": ["avx2", "fma"]}.get(isa, ["avx512dq"]))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Function (threads, instruction set) → results of a process of its own."""
    folder, made = tmp_path_factory.mktemp("outputs"), {}

    def run(threads, isa):
        if (threads, isa) not in made:
            file = folder / f"{threads} {isa}.npz"
            environment = {**os.environ, "KERAS_STSS_ISA": isa, "TF_CPP_MIN_LOG_LEVEL": "3"}
            arguments = [library.FOLDER / build.LIBRARY, str(threads), file]
            subprocess.run([sys.executable, "-c", RUN, *arguments], check=True, env=environment)
            made[threads, isa] = dict(np.load(file))
        return made[threads, isa]

    return run


def test_threads_agree_bit_for_bit(outputs):
    one, many = outputs(1, "avx512"), outputs(5, "avx512")
    for name, value in one.items():
        np.testing.assert_array_equal(many[name], value, err_msg=name)


@pytest.mark.parametrize("isa", ["plain", "avx2"])
def test_instruction_sets_agree(isa, outputs):
    if not has("avx2"):
        pytest.skip("this processor has one instruction set only")
    best, other = outputs(1, "avx512"), outputs(1, isa)
    for name, value in best.items():
        np.testing.assert_allclose(other[name], value, rtol=0, atol=2e-6 * np.abs(value).max(), err_msg=name)


# Not every pair: the compiler takes long over the many AVX-512 kernels with the checks of undefined behaviour.
@pytest.mark.parametrize(
    ("isa", "sanitizer"),
    [("plain", "address,undefined"), ("avx2", "address,undefined"), ("avx512", "address"), ("plain", "thread")],
)
def test_sanitizers(isa, sanitizer, tmp_path):
    """Kernels alone on buffers of exactly their size, on one thread and on four, against plain loops."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler or not build.SOURCES.is_dir():
        pytest.skip("no compiler, or no sources")
    if not has(isa) or (isa != "plain" and platform.machine() not in ("x86_64", "AMD64")):
        pytest.skip(f"no {isa} here")
    flags = ["-std=c++17", "-O1", "-g1", "-ffp-contract=fast", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    probe, program = tmp_path / "probe.cc", tmp_path / "sanitize"
    probe.write_text("int main() { return 0; }\n")
    if (
        subprocess.run([compiler, *flags, probe, "-o", program], capture_output=True).returncode
        or subprocess.run([program], capture_output=True).returncode
    ):
        pytest.skip(f"{compiler} has no {sanitizer} sanitizer that works here")
    sources = [
        build.SOURCES / "stss_forward_cpu.cc",
        build.SOURCES / "stss_backward_cpu.cc",
        HERE / "cc" / "stss_sanitize.cc",
    ]
    flags += [*build.INSTRUCTION_SETS[isa], f"-DKERAS_STSS_ISA={isa}", f"-I{build.SOURCES}", "-pthread"]
    subprocess.run([compiler, *flags, *sources, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# -- in TensorFlow -----------------------------------------------------------------------------------------------------


def test_shapes_are_inferred():
    volume = tf.function(lambda features: stss(features, (-1, 0), (3, 5), "cosine"))
    for shape, expected in (
        ([2, None, 14, None, 16], [2, None, 14, None, 2, 3, 5]),
        ([2, 3, 4, 5, None], [2, 3, 4, 5, 2, 3, 5]),
        (None, [None, None, None, None, 2, 3, 5]),
    ):
        graph = volume.get_concrete_function(tf.TensorSpec(shape, "float32"))
        assert graph.structured_outputs.shape.as_list() == expected

    @tf.function(input_signature=[tf.TensorSpec([None, None, 6, None, None], "float16")])
    def gradient(features):
        found = tf.gradients(stss(features, (1,), (3, 3), "dot"), features)[0]
        assert found.shape.as_list() == [None, None, 6, None, None] and found.dtype == "float16"
        return found

    assert gradient(tf.zeros([1, 2, 6, 4, 3], "float16")).shape == (1, 2, 6, 4, 3)


def test_unknown_sizes_run():
    features, _ = random_inputs((2, 3, 5, 7, 9), (0, 1), (3, 3), "float32", 8)
    volume = tf.function(lambda x: stss(x, (0, 1), (3, 3), "cosine"), input_signature=[tf.TensorSpec(None, "float32")])
    np.testing.assert_array_equal(volume(features), stss(features, (0, 1), (3, 3), "cosine"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": (4, 3)}, r"window must be two odd positive numbers \(U, V\). Received: \(4, 3\)"),
        ({"window": (3, -1)}, r"Received: \(3, -1\)"),
        ({"window": (3,)}, r"Received: \(3\)"),
        ({"temporal_offsets": ()}, "temporal_offsets must name at least one frame"),
        ({"features": np.zeros((2, 3, 4, 5), "f")}, r"features must be \(B, T, H, W, C\). Received shape \[2,3,4,5\]"),
        ({"features": np.zeros((1, 1, 2, 2, 1), "d")}, "double"),
        ({"window": (2**31 - 1, 2**31 - 1)}, "too large"),
    ],
)
def test_what_cannot_be_used_is_refused(change, message):
    arguments = {"features": np.zeros((1, 2, 3, 4, 5), "f"), "temporal_offsets": (0,), "window": (3, 3)}
    with pytest.raises((tf.errors.InvalidArgumentError, TypeError), match=message):
        stss(**{**arguments, **change}, similarity="dot")


def test_a_gradient_of_another_shape_is_refused():
    arguments = {"temporal_offsets": (0,), "window": (3, 3), "cosine": True}
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"the volume's shape \[1,2,3,4,1,3,3\]. Received"):
        library.load().keras_stss_stss_grad(
            features=tf.zeros([1, 2, 3, 4, 5]), gradient=tf.zeros([1, 2, 3, 4, 1, 3, 1]), **arguments
        )


@pytest.mark.parametrize("graph", [False, True])
def test_second_order_is_refused(graph):
    features = tf.ones([1, 2, 3, 3, 4])

    def penalty():
        with tf.GradientTape() as outer:
            outer.watch(features)
            with tf.GradientTape() as inner:
                inner.watch(features)
                total = tf.reduce_sum(stss(features, (1,), (3, 3), "cosine") ** 2)
            slope = tf.reduce_sum(inner.gradient(total, features) ** 2)
        return outer.gradient(slope, features)

    with pytest.raises(NotImplementedError, match=r"no second-order gradient.*implementation='reference'"):
        (tf.function(penalty) if graph else penalty)()


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_trains_inside_a_model(policy):
    """A step through the layer's native form changes the weights as one through the reference does."""
    losses = {}
    for implementation in ("native", "reference"):
        keras.utils.set_random_seed(9)
        inputs = keras.Input((3, 6, 7, 5))
        layer = keras_stss.layers.SpatioTemporalSelfSimilarity(
            (-1, 0, 1), (3, 5), implementation=implementation, dtype=policy
        )
        volume = layer(keras.layers.Dense(16, dtype=policy)(inputs))
        scores = keras.layers.Reshape((3, 6, 7, 45), dtype="float32")(volume)
        pooled = keras.layers.GlobalAveragePooling3D(dtype="float32")(scores)
        model = keras.Model(inputs, keras.layers.Dense(1, dtype="float32")(pooled))
        model.compile("sgd", "mse", jit_compile=False)
        clips = np.random.default_rng(10).normal(size=(8, 3, 6, 7, 5)).astype("f")
        losses[implementation] = model.fit(clips, np.ones(8), epochs=3, batch_size=4, shuffle=False, verbose=0)
    native_loss, reference_loss = (losses[name].history["loss"] for name in ("native", "reference"))
    assert native_loss[-1] < native_loss[0]
    np.testing.assert_allclose(native_loss, reference_loss, rtol={"float32": 1e-4}.get(policy, 2e-2))
