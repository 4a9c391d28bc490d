"""Our side of the benchmark, and TensorFlow's own: what :mod:`keras_stss.bench.worker` times in this environment.

Every contestant is made by ``make(case, arrays, mode)``; see the worker.
"""

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import keras_stss
from keras_stss import blocks, build_model, ops
from keras_stss.bench import loops, readers
from keras_stss.config import parse_config
from keras_stss.ops import dispatch

VERSIONS = {
    "keras_stss": keras_stss.__version__,
    "tensorflow": tf.__version__,
    "keras": keras.__version__,
    "numpy": np.__version__,
    **readers.VERSIONS,
}


def _compiled(function, inputs, gradient, mode, xla):
    """Call of ``function``, or of it and its gradient, both given back so that nothing is pruned."""

    @tf.function(jit_compile=xla)
    def forward(inputs):
        return (function(inputs),)

    @tf.function(jit_compile=xla)
    def step(inputs, gradient):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(inputs)
        return outputs, tape.gradient(outputs, inputs, gradient)

    inputs, gradient = tf.constant(inputs), tf.constant(gradient)
    return (lambda: forward(inputs)) if mode == "forward" else (lambda: step(inputs, gradient))


def _named(*names):
    return lambda results: {name: np.asarray(result) for name, result in zip(names, results)}


# --- the operation ----------------------------------------------------------------------------------------------------


def _stss(function, xla=False):
    def make(case, arrays, mode):
        offsets, window = tuple(case["offsets"]), tuple(case["window"])
        call = _compiled(
            lambda features: function(features, offsets, window), arrays["features"], arrays["gradient"], mode, xla
        )
        return call, _named("volume", "gradient")

    return make


def _ours(implementation):
    return lambda features, offsets, window: ops.stss(features, offsets, window, implementation=implementation)


def _flat_gather(features, offsets, window):
    """TensorFlow as one would write it: a product of whole frames, and one gather by flat index."""
    batch, time, height, width, _ = features.shape
    product, index = _product(features, offsets, window)  # (B, T, HW, L(HW + 1)), (HW, LUV)
    index = index + np.arange(height * width)[:, None] * product.shape[-1]
    volume = tf.gather(tf.reshape(product, (batch * time, -1)), index.reshape(-1), axis=1)
    return tf.reshape(volume, (batch, time, height, width, len(offsets), *window))


def _row_gather(features, offsets, window):
    """The same with a gather from each row of the product, whose gradient is faster under XLA."""
    batch, time, height, width, _ = features.shape
    product, index = _product(features, offsets, window)
    index = tf.constant(np.broadcast_to(index, (batch, time, *index.shape)).copy())
    return tf.reshape(tf.gather(product, index, batch_dims=3), (batch, time, height, width, len(offsets), *window))


def _product(features, offsets, window):
    """Similarities of each position to all of the frames at the offsets, (B, T, HW, L(HW + 1)), and an index (HW, LUV).

    Every frame gets one more position, of zeros, that stands for all that lies outside.
    """
    _, time, height, width, channels = features.shape
    positions, reach = height * width, max(map(abs, offsets))
    unit = features * tf.math.rsqrt(tf.reduce_sum(tf.square(features), axis=-1, keepdims=True) + 1e-6)
    unit = tf.reshape(unit, (-1, time, positions, channels))
    padded = tf.pad(unit, ((0, 0), (reach, reach), (0, 1), (0, 0)))
    others = tf.concat([padded[:, reach + offset : reach + offset + time] for offset in offsets], axis=2)
    product = tf.matmul(unit, others, transpose_b=True)
    y, x, u, v = np.ogrid[:height, :width, : window[0], : window[1]]
    y, x = y + u - window[0] // 2, x + v - window[1] // 2
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    index = np.where(inside, y * width + x, positions).reshape(positions, 1, -1)
    index = index + np.arange(len(offsets))[:, None] * (positions + 1)
    return product, index.reshape(positions, -1).astype("int32")


# --- what the machine can do ------------------------------------------------------------------------------------------


def _matrix_product(case, arrays, mode):
    """size³ multiply-adds."""
    left = tf.random.stateless_normal((case["size"], case["size"]), (1, 2))
    product = tf.function(lambda: tf.matmul(left, left))
    return product, lambda result: {}


def _copy(case, arrays, mode):
    """A copy of so many bytes, by all threads."""
    source = np.ones(max(case["bytes"] // 4, 1), "float32")
    target, threads = np.zeros_like(source), len(os.sched_getaffinity(0))
    pairs = list(zip(np.array_split(target, threads), np.array_split(source, threads)))
    pool = ThreadPoolExecutor(threads)
    return (lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs))), lambda result: {}


# --- blocks and models ------------------------------------------------------------------------------------------------


def _build(case):
    """Block or model of a case; its own initial weights, but normalisations that have seen data."""
    keras.utils.set_random_seed(0)
    if "model" in case:
        config = parse_config({"data": {"format": "something_v2", "root": "."}, "model": case["model"]})
        built = build_model(config, case["classes"])
    else:
        built = getattr(blocks, case["block"])(**case["options"])
        built.build((None, None, None, None, case["channels"]))
    draw = np.random.default_rng(0).uniform
    ranges = {"gamma": (0.9, 1.1), "beta": (-0.1, 0.1), "moving_mean": (-0.1, 0.1), "moving_variance": (0.9, 1.1)}
    for variable in built.weights:
        if variable.name in ranges:
            variable.assign(draw(*ranges[variable.name], variable.shape))
    return built


def _truth(case, arrays, mode):
    """Not timed: the reference's outputs, and the weights for everybody, from the frames' end to the head."""
    built = _build(case)
    # A model's layers are called conv1, res2_0_conv1, …, res3_selfy, …, logits, and come in the order of its graph.
    layers = (
        sorted(built.layers, key=lambda layer: (layer.name == "logits", layer.name)) if "model" in case else [built]
    )
    variables = [variable for layer in layers for variable in layer.weights]
    weights = {f"weight/{number:03}/{item.path}": item.numpy() for number, item in enumerate(variables)}
    call, fetch = _network("reference")(case, arrays, mode)
    return call, lambda results: weights | fetch(results)


def _network(implementation, frozen=False):
    """A block or model in inference ("forward") or training ("step": outputs and the gradients of everything)."""

    def make(case, arrays, mode):
        form = dispatch.portable if implementation == "reference" else contextlib.nullcontext
        if implementation == "native":
            _require(case["native"])
        built = _build(case)
        inputs = tf.constant(arrays["inputs"])

        @tf.function
        def infer(inputs):
            return (built(inputs, training=False),)

        @tf.function
        def step(inputs, gradient):
            with tf.GradientTape() as tape:
                if inputs.dtype.is_floating:
                    tape.watch(inputs)
                outputs = built(inputs, training=True)
            sources = [variable.value for variable in built.trainable_variables]
            sources = [inputs, *sources] if inputs.dtype.is_floating else sources
            return outputs, tape.gradient(outputs, sources, gradient)

        with form():  # while it is traced, the operations ask which form to take
            if mode == "step":
                gradient = tf.constant(arrays["gradient"])
                traced = step.get_concrete_function(inputs, gradient)
                return (lambda: traced(inputs, gradient)), _outputs_and_first_gradient
            traced = infer.get_concrete_function(inputs)
        if frozen:
            traced = convert_variables_to_constants_v2(traced)
        return (lambda: traced(inputs)), _named("outputs")

    return make


def _outputs_and_first_gradient(results):
    """Of the inputs, or of the first convolution where they have none: either has come through everything."""
    outputs, gradients = results
    return {"outputs": np.asarray(outputs), "gradient": np.asarray(gradients[0])}


def _require(operations):
    for operation in operations:
        if reason := dispatch.why_not_native(operation):
            raise RuntimeError(f"the native {operation} operation cannot run: {reason}")


NETWORK = {
    "truth": _truth,
    "native": _network("native"),
    "native, frozen": _network("native", frozen=True),
    "reference": _network("reference"),
    "reference, frozen": _network("reference", frozen=True),
}
STSS = {
    "native": _stss(_ours("native")),
    "reference": _stss(_ours("reference")),
    "reference, XLA": _stss(_ours("reference"), xla=True),
    "flat gather": _stss(_flat_gather),
    "flat gather, XLA": _stss(_flat_gather, xla=True),
    "row gather": _stss(_row_gather),
    "row gather, XLA": _stss(_row_gather, xla=True),
    "matrix product": _matrix_product,
    "copy": _copy,
}
CONTESTANTS = {
    **{("stss", name): make for name, make in STSS.items()},
    **{(kind, name): make for kind in ("block", "model") for name, make in NETWORK.items()},
    **readers.CONTESTANTS,
    **loops.CONTESTANTS,
}
