"""The native convolutions over tiny maps: against float64 loops, against the layers that define them, and in graphs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_stss import ops as keras_stss_ops
from keras_stss.layers import ConvExtractor
from keras_stss.ops import map_conv
from keras_stss.ops.dispatch import why_not_native

HERE = Path(__file__).resolve().parent
SOURCES = Path(keras_stss_ops.__file__).parent / "cc"
REASON = why_not_native("map_conv")
native = pytest.mark.skipif(REASON is not None, reason=f"no native operation here: {REASON}")

# volume (B, T, H, W, L, U, V), channels
EXTRACTORS = {
    "paper": ((1, 2, 5, 6, 2, 9, 9), (4, 16, 64, 64)),
    "wide": ((1, 2, 3, 1, 1, 17, 13), (4, 9, 5)),
    "oblong": ((2, 1, 3, 7, 3, 7, 5), [3, 6]),
    "small": ((1, 2, 5, 4, 2, 5, 5), (2, 3, 4, 13)),
    "one layer": ((1, 1, 2, 3, 2, 3, 3), (5,)),
    "one pixel": ((1, 3, 4, 4, 1, 1, 1), (3, 17)),
}


def sample(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def extractor(implementation, channels, shape, dtype=None):
    """With weights that are the same whatever the implementation, and no two of which are alike."""
    layer = ConvExtractor(channels, implementation, dtype=dtype)
    layer.build(shape)
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        value = rng.normal(size=weight.shape) * 0.3
        if "variance" in weight.path or "gamma" in weight.path:
            value = np.abs(value) + 0.5
        weight.assign(value)
    return layer


def run(layer, volume, training, gradient_seed=3):
    """Output, gradients of the volume and of all trainable weights, and the moving statistics after the call."""
    volume = tf.constant(volume)
    with tf.GradientTape() as tape:
        tape.watch(volume)
        output = layer(volume, training=training)
        loss = tf.reduce_sum(tf.cast(output, "float32") * sample(output.shape, gradient_seed))
    gradients = tape.gradient(loss, [volume, *(weight.value for weight in layer.trainable_variables)])
    results = [output, *gradients, *(weight.value for weight in layer.non_trainable_variables)]
    return [np.asarray(result, "float64") for result in results]


def assert_alike(found, expected, tolerance):
    """Differences beside the largest number of each array."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one.shape == other.shape
        largest = np.abs(other).max(initial=1e-6)
        assert np.abs(one - other).max(initial=0.0) <= tolerance * largest


# -- one convolution against loops ----------------------------------------------------------------------------------


def loop_terms(size, kernel, stride, padding):
    """(output, tap, input) along one axis wherever a tap of the kernel meets the input, and the output's size."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    places = [(o, k, o * stride + k - padding) for o in range(outputs) for k in range(kernel)]
    return [place for place in places if 0 <= place[2] < size], outputs


def loop_conv(x, kernel, strides, padding):
    rows, height = loop_terms(x.shape[1], kernel.shape[0], strides[0], padding[0])
    columns, width = loop_terms(x.shape[2], kernel.shape[1], strides[1], padding[1])
    y = np.zeros((len(x), height, width, kernel.shape[3]))
    for u, a, row in rows:
        for v, b, column in columns:
            y[:, u, v] += x[:, row, column] @ kernel[a, b]
    return y


def loop_conv_gradients(x, kernel, strides, padding, d_y):
    rows, _ = loop_terms(x.shape[1], kernel.shape[0], strides[0], padding[0])
    columns, _ = loop_terms(x.shape[2], kernel.shape[1], strides[1], padding[1])
    d_x, d_kernel = np.zeros_like(x), np.zeros_like(kernel)
    for u, a, row in rows:
        for v, b, column in columns:
            d_x[:, row, column] += d_y[:, u, v] @ kernel[a, b].T
            d_kernel[a, b] += x[:, row, column].T @ d_y[:, u, v]
    return d_x, d_kernel


@native
@pytest.mark.parametrize("maps", [1, 47, 48, 50, 250])
@pytest.mark.parametrize(
    ("size", "kernel", "strides", "padding"),
    [
        ((9, 9, 1), (3, 3, 4), (1, 1), (1, 1)),
        ((9, 7, 4), (3, 3, 16), (2, 2), (1, 1)),
        ((3, 3, 13), (3, 3, 9), (1, 1), (0, 0)),
        ((4, 6, 2), (2, 5, 7), (1, 2), (0, 1)),
        ((2, 2, 6), (5, 5, 3), (3, 1), (2, 2)),
    ],
)
def test_one_convolution(maps, size, kernel, strides, padding):
    """Value, statistics and every gradient, through the statistics too, in float64."""
    x, weights = sample((maps, *size)), sample((*kernel[:2], size[2], kernel[2]), 1)
    scale, shift = sample(size[2:], 2), sample(size[2:], 3)
    inputs = [tf.constant(value) for value in (x, scale, shift, weights)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        packed = map_conv.pack(inputs[0])._replace(scale=inputs[1], shift=inputs[2])
        conv, mean, variance = map_conv.conv(packed, inputs[3], strides, padding, statistics=True)
        # y where it is positive, -y where not: all of it can be seen from outside.
        one, none = tf.ones_like(mean), tf.zeros_like(mean)
        y = map_conv.finish(conv._replace(scale=one, shift=none)) - map_conv.finish(
            conv._replace(scale=-one, shift=none)
        )
        seeds = [sample(value.shape, 4 + number) for number, value in enumerate((y, mean, variance))]
        loss = sum(tf.reduce_sum(value * seed) for value, seed in zip((y, mean, variance), seeds))
    gradients = tape.gradient(loss, inputs)

    wide = [value.astype("float64") for value in (x, scale, shift, weights)]
    before = wide[0] * wide[1] + wide[2]
    active = np.maximum(before, 0.0)
    expected = loop_conv(active, wide[3], strides, padding)
    count = expected[..., 0].size
    assert_alike([y, mean, variance], [expected, expected.mean((0, 1, 2)), expected.var((0, 1, 2))], 3e-6)
    d_y = seeds[0] + seeds[1] / count + 2.0 * seeds[2] * (expected - expected.mean((0, 1, 2))) / count
    d_active, d_kernel = loop_conv_gradients(active, wide[3], strides, padding, d_y)
    d_before = np.where(before > 0.0, d_active, 0.0)
    d_scale, d_shift = (d_before * wide[0]).sum((0, 1, 2)), d_before.sum((0, 1, 2))
    assert_alike(gradients, [d_before * wide[1], d_scale, d_shift, d_kernel], 2e-5)


@native
def test_variance_far_from_zero():
    """Statistics are exact where the mean is a thousand times the deviation."""
    maps = 1000.0 + sample((3000, 3, 3, 1))
    _, mean, variance = map_conv.conv(map_conv.pack(maps), tf.ones((1, 1, 1, 1)), (1, 1), (0, 0), statistics=True)
    wide = maps.astype("float64")
    np.testing.assert_allclose(mean, [wide.mean()], rtol=1e-6)
    np.testing.assert_allclose(variance, [wide.var()], rtol=1e-4)


# -- the layer against its reference form ---------------------------------------------------------------------------


@native
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", EXTRACTORS)
def test_extractor(case, training):
    """Output, all gradients, moving statistics; inference is one operation that is differentiated too."""
    shape, channels = EXTRACTORS[case]
    results = [run(extractor(form, channels, shape), sample(shape), training) for form in ("native", "reference")]
    assert np.abs(results[1][0]).max() > 0.1
    assert_alike(*results, 1e-4 if training else 1e-5)


@native
@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_float16", 1e-3), ("mixed_bfloat16", 8e-3)])
@pytest.mark.parametrize("training", [False, True])
def test_half_precision(policy, tolerance, training):
    """What goes in and comes out is rounded, and nothing between: float32 with rounded kernels gives the same."""
    shape, channels = EXTRACTORS["paper"]
    dtype = policy.removeprefix("mixed_")
    volume = tf.cast(sample(shape), dtype)
    half, wide = extractor("native", channels, shape, dtype=policy), extractor("native", channels, shape)
    for conv in wide.convs:  # Keras leaves a normalisation's weights as they are
        conv.kernel.assign(tf.cast(tf.cast(conv.kernel.value, dtype), "float32"))
    found, expected = run(half, volume, training), run(wide, tf.cast(volume, "float32"), training)
    assert half(volume).dtype == dtype
    assert_alike(found, expected, tolerance)


@native
@pytest.mark.parametrize("frozen", [(0, 1, 2), (1,), (0, 2)])
def test_frozen_normalisation(frozen):
    """A frozen normalisation keeps its moving statistics, the others take the maps' own, as in the reference."""
    results = []
    shape = (1, 2, 3, 4, 2, 7, 7)
    for form in ("native", "reference"):
        layer = extractor(form, (3, 4, 5), shape)
        for number in frozen:
            layer.convs[number].bn.trainable = False
        before = [weight.numpy() for weight in layer.weights]
        results.append(run(layer, sample(shape), training=True))
        for number, conv in enumerate(layer.convs):
            old = before[[weight.path for weight in layer.weights].index(conv.bn.moving_mean.path)]
            assert np.array_equal(old, conv.bn.moving_mean.numpy()) == (number in frozen)
    assert_alike(*results, 1e-4)


@native
def test_unknown_sizes():
    """One traced function serves any batch, none at all too."""
    layer = extractor("native", (4, 8, 6), (None, None, None, None, None, 9, 9))

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, None, None, 9, 9))])
    def step(volume):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(volume)
            outputs = [layer(volume, training=training) for training in (False, True)]
            losses = [tf.reduce_sum(output**2) for output in outputs]
        assert outputs[0].shape.as_list() == outputs[1].shape.as_list() == [None] * 5 + [6]
        return *outputs, *(tape.gradient(loss, volume) for loss in losses)

    for shape in ((1, 2, 3, 5, 2, 9, 9), (2, 1, 4, 4, 1, 9, 9), (0, 2, 3, 5, 2, 9, 9)):
        results = step(sample(shape))
        assert [tuple(result.shape) for result in results] == [(*shape[:5], 6)] * 2 + [shape] * 2
        assert all(np.isfinite(result).all() for result in results)
    statistics = [weight.numpy() for weight in layer.non_trainable_variables]
    assert all(np.isfinite(value).all() for value in statistics)
    assert all(not gradient.any() for gradient in run(layer, sample(shape), training=False)[1:-6])


@native
def test_maps_do_not_touch():
    """A NaN stays in its own map, and is not hidden by the ReLU."""
    shape = (1, 1, 5, 10, 1, 9, 9)
    layer = extractor("native", (4, 8, 6), shape)
    volume = sample(shape)
    clean = layer(volume).numpy()
    volume[0, 0, 1, 2, 0, 4, 4] = np.nan
    found = layer(volume).numpy()
    hit = np.zeros(shape[:5], bool)
    hit[0, 0, 1, 2, 0] = True
    np.testing.assert_array_equal(found[~hit], clean[~hit])
    assert np.isnan(found[hit]).all()


@native
def test_which_form_runs():
    """auto takes the native form, and the reference where a graph must hold stock operations only."""
    layer = extractor("auto", (4, 6), (None, None, None, None, None, 5, 5))
    spec = tf.TensorSpec((1, 1, 2, 2, 1, 5, 5))

    def operations(training):
        graph = tf.function(lambda volume: layer(volume, training=training)).get_concrete_function(spec).graph
        return {operation.type for operation in graph.get_operations() if operation.type.startswith("KerasStss>")}

    assert operations(False) == {"KerasStss>MapConvStack"}
    assert operations(True) == {"KerasStss>MapPack", "KerasStss>MapConv", "KerasStss>MapFinish"}
    with keras_stss_ops.portable():
        assert operations(False) == operations(True) == set()


@native
def test_more_layers_than_a_stack_takes():
    channels, shape = (2,) * 17, (1, 1, 2, 3, 1, 3, 3)
    results = [run(extractor(form, channels, shape), sample(shape), False) for form in ("native", "reference")]
    assert_alike(*results, 1e-4)


@native
def test_weights_go_from_one_form_to_the_other(tmp_path):
    shape = (1, 2, 3, 3, 2, 9, 9)
    inputs = keras.Input(shape[1:])
    layer = extractor("native", (4, 8, 6), shape)
    keras.Model(inputs, layer(inputs)).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].get_config()["implementation"] == "native"
    other = ConvExtractor.from_config({**layer.get_config(), "implementation": "reference"})
    other.build(shape)
    assert [weight.path for weight in other.weights] == [weight.path for weight in layer.weights]
    other.set_weights(loaded.layers[-1].get_weights())
    volume = sample(shape)
    np.testing.assert_array_equal(loaded(volume), layer(volume))
    np.testing.assert_allclose(other(volume), layer(volume), atol=1e-5)


# -- errors ---------------------------------------------------------------------------------------------------------


def test_unknown_implementation():
    with pytest.raises(ValueError, match="implementation"):
        ConvExtractor(implementation="fast")


@native
@pytest.mark.parametrize(
    ("maps", "kernel", "message"),
    [
        ((4, 5, 5, 2), (3, 3, 3, 4), "must be|equal"),
        ((4, 2, 5, 1), (3, 3, 1, 4), "does not fit"),
        ((4, 5, 5, 1), (3, 3, 1), "rank|must be"),
        ((5, 5), (3, 3, 1, 4), "rank|must have"),
    ],
)
def test_shapes_that_do_not_go_together(maps, kernel, message):
    for call in (map_conv.stack, tf.function(map_conv.stack)):
        with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=message):
            call(tf.zeros(maps), [tf.zeros(kernel)], [tf.zeros(kernel[-1:])], [(1, 1)], [(0, 0)])


@native
@pytest.mark.parametrize("training", [False, True])
def test_second_order_is_refused(training):
    layer = extractor("native", (2, 3), (1, 1, 2, 2, 1, 5, 5))
    volume = tf.constant(sample((1, 1, 2, 2, 1, 5, 5)))
    with tf.GradientTape() as outer:
        outer.watch(volume)
        with tf.GradientTape() as inner:
            inner.watch(volume)
            loss = tf.reduce_sum(layer(volume, training=training) ** 2)
        gradient = inner.gradient(loss, volume)
    with pytest.raises(NotImplementedError, match="implementation='reference'"):
        outer.gradient(gradient, volume)


# -- threads, instruction sets, sanitizers --------------------------------------------------------------------------

PROCESS = """
import sys
import numpy as np
import tensorflow as tf
threads, target, tests = int(sys.argv[1]), sys.argv[2], sys.argv[3]
tf.config.threading.set_intra_op_parallelism_threads(threads)
sys.path.insert(0, tests)
from test_map_conv import extractor, run, sample
shape = (2, 4, 7, 9, 3, 9, 9)
results = [run(extractor("native", (4, 16, 24), shape), sample(shape), training) for training in (False, True)]
np.savez(target, *[array for part in results for array in part])
"""


@native
def test_threads_and_instruction_sets(tmp_path):
    """Bit for bit the same with one thread and with many; every instruction set within rounding of the best."""
    settings = {"one": (1, {}), "many": (5, {})}
    settings |= {isa: (2, {"KERAS_STSS_ISA": isa}) for isa in ("plain", "avx2")}
    running = {}
    for name, (threads, environment) in settings.items():
        command = [sys.executable, "-c", PROCESS, str(threads), str(tmp_path / f"{name}.npz"), str(HERE)]
        running[name] = subprocess.Popen(
            command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True, cwd=HERE.parent
        )
    for process in running.values():
        assert process.communicate()[1] is not None and process.returncode == 0
    results = {}
    for name in settings:
        with np.load(tmp_path / f"{name}.npz") as arrays:
            results[name] = [arrays[key] for key in arrays.files]
    for one, many in zip(results["one"], results["many"]):
        np.testing.assert_array_equal(one, many)
    for isa in ("plain", "avx2"):
        assert_alike(results[isa], results["one"], 2e-4)


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
def test_sanitizers(isa, tmp_path):
    """The kernels alone, on buffers of exactly their size, under the address and undefined-behaviour sanitizers."""
    from keras_stss.ops.native.build import INSTRUCTION_SETS

    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("no g++ to compile it with")
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if isa != "plain" and not {"avx2": {"avx2", "f16c", "fma"}, "avx512": {"avx512bw", "avx512vl"}}[isa] <= set(
        cpu.split()
    ):
        pytest.skip(f"the processor does not have {isa}")
    program = tmp_path / "sanitize"
    flags = ["-std=c++17", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags += [*INSTRUCTION_SETS[isa], f"-DKERAS_STSS_ISA={isa}", "-I", SOURCES]
    subprocess.run([compiler, *flags, HERE / "cc" / "map_conv_sanitize.cc", "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" 0 failures\n")
