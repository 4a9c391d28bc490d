"""How fast each export is beside Keras, and which model goes through which door.

    python benchmarks/doors.py [NAME …] [--size 224] [--rounds 9]   # milliseconds a clip of 8 frames, on all cores
    python benchmarks/doors.py --cpu-time                           # the processor's time, on one core
    python benchmarks/doors.py --every                              # each part of a model × each format, tiny

Weights are random. In the first form all ways of running a model take turns in each round, and medians are printed,
with their ratio to the plain Keras model, ``model(x)``. In the second, the largest difference of probabilities to the
Keras model over some clips, or why there is none.
"""

import argparse
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_stss import build_model
from keras_stss.bench.machine import describe
from keras_stss.config import DataConfig
from keras_stss.config.data import cores
from keras_stss.export import openvino
from keras_stss.export.check import compare, make_case, time_in_turns
from keras_stss.export.doors import DOORS, lacking
from keras_stss.export.graph import classifier, save_graph
from keras_stss.ops import native_status, portable

FRAMES, CLASSES = 8, 174
MODELS = {
    "tsn_resnet18": ("tsn_resnet18_8f", {}),
    "tsm_resnet18": ("tsm_resnet18_8f", {}),
    "msnet_tsm_resnet18": ("msnet_tsm_resnet18_8f", {}),
    "selfynet_tsm_resnet18": ("selfynet_tsm_resnet18_8f", {}),
    "tsm_mobilenet_v2": ("tsn_mobilenet_v2_8f", {"temporal": "tsm"}),
}
SMALL = {"backbone": "resnet10", "width": 8}
SELFY = {"channels": 8, "window": [5, 5], "extraction_channels": [4, 8], "integration_channels": [8]}
#: What a model may be made of, each in a network as small as can be.
PARTS = {
    "tsn, resnet": {**SMALL, "temporal": "tsn"},
    "tsm, resnet": SMALL,
    "tsm, resnet, causal": {**SMALL, "causal": True},
    "tsm, mobilenet_v2": {"backbone": "mobilenet_v2", "width": 16},
    "stm, resnet": {**SMALL, "temporal": "stm"},
    "i3d": {"backbone": "i3d", "temporal": "3d", "width": 8},
    "selfy": {**SMALL, "insert": {"res3": {"selfy": SELFY}}},
    "selfy, released": {**SMALL, "insert": {"res3": {"selfy": {**SELFY, "variant": "released"}}}},
    "motion_squeeze": {**SMALL, "insert": {"res3": {"motion_squeeze": {"window": [5, 5]}}}},
    **{
        name: {**SMALL, "insert": {"res3": {name: {}}}}
        for name in ("stm", "stcb", "non_local", "cp", "correlation", "local_attention")
    },
}


def build(name_or_config, **model):
    """A model whose probabilities differ between clips and classes, as those of a trained one do."""
    keras.utils.set_random_seed(1)
    model = build_model(name_or_config, classes=CLASSES, pretrained=None, **model)
    head = model.get_layer("logits")
    head.kernel.assign(head.kernel * 300.0)
    return model


def ways(model, shape, folder, threads):
    """{way of running: function from frames to probabilities, or the reason why there is none}."""
    found = {}
    with portable():
        classify = classifier(model, shape)
        save_graph(classify, folder / "portable")
        for name, door in DOORS.items():
            if reason := lacking(name):
                found[name] = reason
                continue
            try:
                door.save(classify, folder / "portable", folder / door.file, [])
                found[name] = door.load(folder / door.file, threads)
            except Exception as error:  # whatever a converter raises
                found[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return {"saved_model": _saved_model(folder / "portable"), **found}


def _saved_model(folder):
    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    return lambda frames: signature(frames=tf.constant(frames))["probabilities"].numpy()


def speed(name, size, rounds, threads, clock):
    """Prints a line for each way of running a model."""
    preset, changes = MODELS[name]
    model, shape = build(preset, **changes), (1, FRAMES, size, size, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    graph = tf.function(lambda frames: model(frames, training=False))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        functions = {
            "model(x)": lambda frames: model(frames, training=False).numpy(),
            "model.predict": lambda frames: model.predict(frames, verbose=0),
            "tf.function": lambda frames: graph(tf.constant(frames)).numpy(),
            **ways(model, shape, folder, threads),
        }
        if native_status()["available"]:
            save_graph(classifier(model, shape), folder / "native")
            functions["saved_model, native"] = _saved_model(folder / "native")
        file = folder / DOORS["openvino"].file
        if callable(functions["openvino"]) and (own := openvino.own_precision(file, threads)) != "f32":
            functions[f"openvino, {own}"] = openvino.load(file, threads, own)
        runnable = {way: function for way, function in functions.items() if callable(function)}
        times = time_in_turns({way: lambda run=run: run(frames) for way, run in runnable.items()}, rounds, clock)
    for way, function in functions.items():
        figures = f"{times[way]:.1f} | {times['model(x)'] / times[way]:.2f}" if way in times else f"{function} | "
        print(f"| {name} | {way} | {figures} |", flush=True)


def every():
    """Prints a line for each part of a model."""
    data = DataConfig(format="clips", root="nowhere", annotations="none.csv", frames=4, resize=64, crop=64)
    print(f"| part | {' | '.join(('saved_model', *DOORS))} |\n|---|{'---|' * (1 + len(DOORS))}")
    for name, section in PARTS.items():
        model = build("tsm_resnet18_8f", **{"backbone": "resnet10", "insert": {}, **section})
        case = make_case(model, data, 1)
        with tempfile.TemporaryDirectory() as folder:
            cells = []
            for run in ways(model, case.clips[:1].shape, Path(folder), cores()).values():
                try:
                    cells.append(f"{compare(run, case, 1).largest:.0e}" if callable(run) else run)
                except Exception as error:  # whatever a runtime raises
                    cells.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu-time", action="store_true", help="one thread, and the time that the processor worked")
    parser.add_argument("--every", action="store_true", help="each part of a model through each door")
    arguments = parser.parse_args()
    print(describe())
    if arguments.every:
        every()
        return
    threads, clock = (1, time.process_time) if arguments.cpu_time else (cores(), time.perf_counter)
    if arguments.cpu_time:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    print("| model | run as | ms | times model(x) |\n|---|---|---|---|")
    for name in arguments.models or MODELS:
        speed(name, arguments.size, arguments.rounds, threads, clock)


if __name__ == "__main__":
    main()
