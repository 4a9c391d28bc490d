"""Loads the native library at first use, and keeps the reason where it cannot."""

import ctypes
import functools
import logging
import threading
from pathlib import Path

import tensorflow as tf

from keras_stss.ops.native import build

FOLDER = Path(__file__).resolve().parent

#: Operations that have CUDA kernels where the library was built with nvcc.
CUDA_OPERATIONS = ("stss", "displacement")

#: Offsets that a CUDA kernel takes at most.
MOST_OFFSETS = 64

#: How every reason ends that a build would mend.
MEND = "build it with: python -m keras_stss.ops.native.build"

_lock = threading.RLock()


def load():
    """The module of raw operations (``keras_stss_stss`` and so on); raises RuntimeError with the reason."""
    operations, _, reason = _loaded()
    if reason:
        raise RuntimeError(f"the native library cannot be used: {reason}")
    return operations


def obstacle(operation):
    """(reason, log level) for an operation that cannot run in this process, or (None, None)."""
    _, record, reason = _loaded()
    if reason:
        return reason, logging.WARNING
    return _gpu_obstacle(operation, record.get("cuda") or [])


def why_not(operation):
    """The reason why ``operation`` ("stss", "displacement", "map_conv") cannot run in this process, or None."""
    return obstacle(operation)[0]


def status():
    """See :func:`keras_stss.ops.native_status`."""
    _, record, reason = _loaded()
    return {
        "available": reason is None,
        "reason": reason,
        "tensorflow": record.get("tensorflow"),
        "cuda": record.get("cuda") or [],
        "instruction_set": None if reason else _call(ctypes.c_char_p, "KerasStssInstructionSet").decode(),
    }


def parts(temporal_offsets):
    """Lists of as many offsets as a CUDA kernel takes at once."""
    # Of none, too, one list: the operation says what is wrong with it.
    starts = range(0, max(len(temporal_offsets), 1), MOST_OFFSETS)
    return [list(temporal_offsets[start : start + MOST_OFFSETS]) for start in starts]


def _loaded():
    with _lock:  # replicas of a strategy trace in threads of their own
        return _load_once()


@functools.cache
def _load_once():
    """(module, record, None), or (None, record, reason): tried once a process."""
    record = {}
    try:
        record = build.read_record(FOLDER)
        build.check(record, tf.__version__, FOLDER)
        return tf.load_op_library(str(FOLDER / build.LIBRARY)), record, None
    except build.BuildError as error:
        return None, record, f"{error}; {MEND}"
    except (tf.errors.OpError, OSError) as error:
        first = (getattr(error, "message", None) or str(error)).strip().splitlines()[0]
        return None, record, f"TensorFlow cannot load it ({first}); {MEND}"


def _gpu_obstacle(operation, architectures):
    """Where TensorFlow works on a GPU, an operation without a kernel for it would pull its tensors off the GPU."""
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return None, None
    if operation not in CUDA_OPERATIONS:
        return "TensorFlow works on a GPU, and this operation has CPU kernels only", logging.INFO
    if not architectures:
        return f"TensorFlow works on a GPU, and the library was built without CUDA; with nvcc, {MEND}", logging.WARNING
    lowest = min(int("".join(filter(str.isdigit, name))) for name in architectures)
    for gpu in gpus:
        major, minor = tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        if (major, minor) != (0, 0) and major * 10 + minor < lowest:
            own = f"{major}{minor}"
            return (
                f"its CUDA kernels are for sm_{lowest} and newer, and {gpu.name} is sm_{own}; "
                f"with KERAS_STSS_CUDA_ARCHS={own},{lowest}, {MEND}"
            ), logging.WARNING
    if _call(ctypes.c_int, "KerasStssDriverTooOld"):
        return "the NVIDIA driver is older than the CUDA toolkit that the library was built with", logging.WARNING
    return None, None


def _call(result, function):
    """Calls a C function of the loaded library that takes nothing."""
    function = getattr(ctypes.CDLL(str(FOLDER / build.LIBRARY)), function)
    function.restype = result
    return function()
