"""OpenVINO's files, .xml and .bin."""

import functools
import json


def save(classify, saved_model, file, labels):
    """Converts a SavedModel; weights stay float32, and the labels are among the model's facts (``labels``)."""
    import openvino

    model = openvino.convert_model(str(saved_model))
    model.set_rt_info(json.dumps(labels, ensure_ascii=False), "labels")
    openvino.save_model(model, str(file), compress_to_fp16=False)


def load(file, threads, precision="f32"):
    """A function from frames to probabilities.

    Args:
        file: .xml.
        threads: of the CPU.
        precision: that the CPU computes in: ``"f32"``, ``"bf16"``, or None for what OpenVINO chooses by itself, which
            is bf16 on CPUs that have it.
    """
    compiled = _compile(file, threads, precision)
    return lambda frames: compiled([frames])["probabilities"]


def own_precision(file, threads):
    """What OpenVINO chooses by itself on this CPU: ``"f32"``, ``"bf16"`` or ``"f16"``."""
    return _compile(file, threads, None).get_property("INFERENCE_PRECISION_HINT").get_type_name()


def _compile(file, threads, precision):
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    return _core().compile_model(str(file), "CPU", settings)


@functools.cache
def _core():
    """One core, which is never let go.

    The first model that it compiles gives this thread another stack to handle signals on, which goes with the core;
    where the core goes in another thread (of a garbage collection, for one), the next signal kills the process.
    """
    import openvino

    return openvino.Core()
