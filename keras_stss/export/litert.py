"""LiteRT (.tflite), as phones and small machines run it."""

import contextlib
import os
import warnings

import tensorflow as tf


def convert(saved_model, file, int8=False):
    """Converts the signature ``serving_default`` of a SavedModel.

    Args:
        saved_model: its folder; all shapes in it are known.
        file: to write.
        int8: weights are held in 8 bits and the products computed with them, from inputs that are quantised as they
            come (dynamic-range quantisation): a quarter of the size.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=["serving_default"])
    converter.optimizations = [tf.lite.Optimize.DEFAULT] if int8 else []
    with _muted():
        content = converter.convert()
    file.write_bytes(content)


@contextlib.contextmanager
def _muted():
    """Keeps off standard error what the converter's C++ writes there: what matters of it is in the exception again."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def open_signature(file, threads=None):
    """The function of a LiteRT file, by LiteRT's own package where it is installed, else by TensorFlow's copy of it.

    Returns:
        The signature's runner, which takes and gives arrays by name.
    """
    try:
        from ai_edge_litert import interpreter
    except ImportError:
        interpreter = tf.lite
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package that TensorFlow's copy is to move to
        return interpreter.Interpreter(model_path=str(file), num_threads=threads).get_signature_runner()


def save(classify, saved_model, file, labels):
    """As the other formats' ``save``; a LiteRT file has no place for labels."""
    convert(saved_model, file)


def save_int8(classify, saved_model, file, labels):
    """The same with weights of 8 bits."""
    convert(saved_model, file, int8=True)


def load(file, threads):
    """A function from frames to probabilities."""
    runner = open_signature(file, threads)
    return lambda frames: runner(frames=frames)["probabilities"]
