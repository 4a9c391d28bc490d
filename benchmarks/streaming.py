"""What a frame of a live stream costs beside a clip: python benchmarks/streaming.py [NAME …] [--size 224] [--rounds 7].

Each model is built in its causal form with random weights. ``clip`` is the model on a clip of 8 frames, compiled;
``step`` a frame of the stream; ``litert`` the same as a LiteRT file. Medians in milliseconds over rounds in which all
take turns. Operations are those that TensorFlow counts in the graphs.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_stss import build_model
from keras_stss.bench.machine import describe
from keras_stss.config.data import cores
from keras_stss.ops import portable
from keras_stss.streaming import save_litert, streaming_model

FRAMES = 8
PAST = {"model.insert.res3.selfy.temporal_offsets": (-4, -3, -2, -1, 0)}
MODELS = {
    "tsm_mobilenet_v2": ("tsn_mobilenet_v2_8f", {"temporal": "tsm"}),
    "tsm_resnet18": ("tsm_resnet18_8f", {}),
    "msnet_tsm_resnet18": ("msnet_tsm_resnet18_8f", {}),
    "selfynet_tsm_resnet18": ("selfynet_tsm_resnet18_8f", PAST),
    "stm_resnet18": ("stm_resnet18_8f", {}),
    "tsm_resnet50": ("tsm_resnet50_8f", {}),
    "stm_resnet50": ("stm_resnet50_8f", {}),
}
COLUMNS = ("clip", "clip / 8", "step", "step : clip / 8", "litert", "operations : clip / 8", "state, MB")


def operations(function, *specs):
    """Floating-point operations of a traced function."""
    with portable():
        graph = tf.function(function).get_concrete_function(*specs).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder(tf.compat.v1.profiler.ProfileOptionBuilder.float_operation())
    return tf.compat.v1.profiler.profile(graph, options=options.with_empty_output().build()).total_float_ops


def litert_step(stream, size):
    """The step as LiteRT runs it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "step.tflite"
        save_litert(stream, file, size, size)
        content = file.read_bytes()
    return tf.lite.Interpreter(model_content=content, num_threads=cores()).get_signature_runner()


def measure(name, size, rounds):
    """The columns of a model."""
    preset, changes = MODELS[name]
    model = build_model(preset, causal=True, pretrained=None, **changes)
    stream = streaming_model(model)
    clip = np.random.default_rng(0).integers(0, 256, (1, FRAMES, size, size, 3), np.uint8)
    whole, runner = tf.function(lambda clip: model(clip, training=False)), litert_step(stream, size)
    states = dict.fromkeys(("step", "litert"), stream.initial_state(1, size, size))

    def step():
        logits, states["step"] = stream.step(clip[:, 0], states["step"])
        logits.numpy()

    def litert():
        states["litert"] = runner(frame=clip[:, 0], **states["litert"])
        states["litert"].pop("logits")

    times = race({"clip": lambda: whole(tf.constant(clip)).numpy(), "step": step, "litert": litert}, rounds)
    state = stream.initial_state(1, size, size)
    inputs = {"frame": clip[:, 0], **state}
    spec = {key: tf.TensorSpec(value.shape, value.dtype) for key, value in inputs.items()}
    share = operations(lambda inputs: stream.model(inputs, training=False), spec) * FRAMES
    share /= operations(lambda clip: model(clip, training=False), tf.TensorSpec(clip.shape, tf.uint8))
    each = times["clip"] / FRAMES
    megabytes = sum(value.nbytes for value in state.values()) / 1e6
    return times["clip"], each, times["step"], times["step"] / each, times["litert"], share, megabytes


def race(functions, rounds):
    """{name: median milliseconds}; the first round counts for nothing."""
    taken = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            taken[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(describe())
    print(f"| model, ms | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name in arguments.models or MODELS:
        values = measure(name, arguments.size, arguments.rounds)
        print(f"| {name} | {' | '.join(f'{value:.3g}' for value in values)} |", flush=True)


if __name__ == "__main__":
    main()
