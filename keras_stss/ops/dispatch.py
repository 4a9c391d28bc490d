"""Which form of an operation runs: the native one or the one in plain ``keras.ops``."""

import contextlib
import logging
import os
import threading

import keras

log = logging.getLogger(__name__)

IMPLEMENTATIONS = ("auto", "native", "reference")

#: What the native operations compute with; everything else takes the reference.
DTYPES = ("float32", "float16", "bfloat16")

_told = set()

# How many portable() are open in this process. Not of a thread: replicas of a strategy trace in threads of their own.
_portable = 0
_lock = threading.Lock()


@contextlib.contextmanager
def portable():
    """Inside it every operation takes its reference form, so that a traced graph holds stock operations only.

    Meant for export: a SavedModel that is traced under it loads where this library is not installed. It goes before
    ``implementation="native"``, holds for all threads, and leaves a ``tf.function`` as it is that was traced before.
    """
    _count_portable(1)
    try:
        yield
    finally:
        _count_portable(-1)


def _count_portable(change):
    global _portable
    with _lock:
        _portable += change


def check_implementation(implementation):
    """Raises ValueError for an implementation that does not exist."""
    if not isinstance(implementation, str) or implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {IMPLEMENTATIONS}. Received: implementation={implementation!r}"
        )


def use_native(implementation, operation, dtype=None):
    """Whether an operation is to run natively here and now.

    The first time that "auto" has to do without, or that a native operation runs, the log says so.

    Args:
        implementation: ``"auto"``, ``"native"`` or ``"reference"``.
        operation: ``"stss"``, ``"displacement"`` or ``"map_conv"``.
        dtype: name of the tensors' dtype, where it is known.

    Raises:
        ValueError: for another implementation, or ``"native"`` with another dtype. RuntimeError: for ``"native"``
            where it cannot run for another reason, which it names.
    """
    check_implementation(implementation)
    if implementation == "reference" or _portable:
        return False
    if implementation == "native" and dtype is not None and dtype not in DTYPES:
        raise ValueError(
            f"implementation='native' takes {', '.join(DTYPES)}; use 'auto' or 'reference'. Received: dtype={dtype}"
        )
    reason, level = _obstacle(operation, dtype)
    if reason is None:
        _tell_once(logging.INFO, f"native operations: {_summary()}")
        return True
    if implementation == "native":
        raise RuntimeError(
            f"implementation='native', but the native {operation} cannot run: {reason}. 'auto' takes the reference then"
        )
    _tell_once(level, f"{operation} runs in its slower reference form: {reason}")
    return False


def why_not_native(operation, dtype=None):
    """The reason why an operation cannot run natively here and now (see :func:`use_native`), or None."""
    return _obstacle(operation, dtype)[0]


def native_status():
    """What there is of the native operations in this process; loads the library if that has not happened yet.

    Returns:
        dict that JSON can hold: ``available``; ``reason``, why not, or None; ``tensorflow``, the version that the
        library was built for; ``cuda``, the GPU architectures that it has kernels for (empty: none);
        ``instruction_set``, what the CPU kernels use here: ``"avx512"``, ``"avx2"`` or ``"plain"``.
    """
    reason = _switched_off()
    if reason:
        return {"available": False, "reason": reason, "tensorflow": None, "cuda": [], "instruction_set": None}
    from keras_stss.ops.native import library

    return library.status()


def native_library():
    """Path of the native library's file (``pathlib.Path``), for whoever loads a graph that holds its operations."""
    from keras_stss.ops.native import build, library

    return library.FOLDER / build.LIBRARY


def log_native_status():
    """Logs one line that says which form of the operations runs in this process."""
    _told.add(line := f"native operations: {_summary()}")
    log.info("%s", line)


def _summary():
    status = native_status()
    if not status["available"]:
        return f"none ({status['reason']}); the reference runs"
    cuda = f"CUDA kernels for {', '.join(status['cuda'])}" if status["cuda"] else "no CUDA kernels"
    return f"CPU kernels for {status['instruction_set']}, {cuda}, built for TensorFlow {status['tensorflow']}"


def _obstacle(operation, dtype):
    """(reason, log level), or (None, None) where nothing stands in the way; warnings are what the user can mend."""
    if reason := _switched_off():
        return reason, logging.INFO
    if dtype is not None and dtype not in DTYPES:
        return f"it takes {', '.join(DTYPES)}. Received: dtype={dtype}", logging.INFO
    from keras_stss.ops.native import library, surroundings

    if reason := surroundings.obstacle():
        return reason, logging.INFO
    return library.obstacle(operation)


def _switched_off():
    if os.environ.get("KERAS_STSS_NATIVE") == "0":
        return "KERAS_STSS_NATIVE=0 switches it off"
    if keras.backend.backend() != "tensorflow":
        return f"the Keras backend is {keras.backend.backend()}, not tensorflow"
    return None


def _tell_once(level, line):
    if line not in _told:
        _told.add(line)
        log.log(level, "%s", line)
