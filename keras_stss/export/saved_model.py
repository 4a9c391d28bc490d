"""A run as a SavedModel of stock TensorFlow operations, for TensorFlow Serving or the C API.

Clients send frames of any size, raw or as JPEG, and get probabilities with their labels: decoding, the centre view of
testing, the model and softmax are all in the graph, so that nothing is left for a client to do differently.
"""

import math
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_stss.config import Config, ConfigError
from keras_stss.data.augment import center_view
from keras_stss.export.fold import fold_batch_norm
from keras_stss.export.graph import save_functions
from keras_stss.export.place import check_target, size, writing
from keras_stss.models.build import load_model
from keras_stss.ops import dispatch, native_status, portable
from keras_stss.training.saving.run import read_run

#: File that every SavedModel has.
MARKER = "saved_model.pb"
#: Where a SavedModel with native operations has their library; TensorFlow leaves ``assets.extra`` alone.
LIBRARY = "assets.extra/keras_stss_native.so"

#: Largest absolute difference allowed between the probabilities of the SavedModel and of the Keras model. The saved
#: graph fuses operations that run one by one in Keras, and half precision rounds between those: to one part in 2**11
#: (float16) or 2**8 (bfloat16), layer after layer.
TOLERANCES = {"float32": 1e-4, "mixed_float16": 1e-2, "mixed_bfloat16": 5e-2}

# Operations that call back into the Python process that traced them.
_PYTHON_OPERATIONS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


class ExportError(RuntimeError):
    """An export that does not compute what the Keras model computes, or not where it is to run."""


def export_run(run_folder, folder, force=False, native=False):
    """Writes a run's best model as a SavedModel and checks it against the Keras model.

    TensorFlow Serving takes a model from numbered folders, one a version: name ``folder`` accordingly, for example
    ``models/motion/1``. The signatures, with T = ``data.frames`` of the run and K classes:

    - ``serving_default``: ``frames`` uint8 (batch, T, height, width, 3), RGB, of any height and width;
    - ``serving_jpeg``: ``jpeg`` string (batch, T), encoded JPEG frames of any sizes, which may differ.

    Both give ``probabilities`` float32 (batch, K) and ``labels`` string (batch, K), by class index, the same in every
    row. Frames go through the testing view (:func:`keras_stss.data.augment.center_view` with the run's ``data.resize``
    and ``data.crop``); those that are ``crop`` x ``crop`` already pass unchanged. Batch normalisation is folded.

    Args:
        run_folder: a run directory with best.keras.
        folder: where to write; its parents are made. It appears only once the model is whole and checked.
        force: replace a SavedModel that is there.
        native: leave the native operations in the graph, and put their library into ``assets.extra`` (see
            :data:`LIBRARY`): whoever loads the SavedModel, with the same version of TensorFlow, loads that before it.

    Returns:
        dict that JSON can hold: ``folder``; ``precision``; ``max_difference``, the largest absolute difference of
        probabilities from the Keras model, and its bound ``tolerance``; ``signatures``, {name: {"inputs" or "outputs":
        {name: {"tensor", "dtype", "shape"}}}}; ``operations``, the sorted op types of the graph and its functions;
        ``library``, of the native operations, or None; ``bytes``, the size of all files.

    Raises:
        ConfigError: where the run or the folder cannot be used, and for ``native`` where there is nothing native.
        ExportError: where the SavedModel does not compute what the Keras model computes, or needs Python or, without
            ``native``, the native library.
    """
    folder = Path(os.path.abspath(folder))
    check_target(folder, force, MARKER)  # before what takes its time
    opened = open_run(run_folder)
    with writing(folder, force, MARKER) as unfinished:
        report = write_saved_model(opened, unfinished, native)
        # Written this way round, a difference that is not a number fails too.
        if not report["max_difference"] < report["tolerance"]:
            raise ExportError(
                f"the SavedModel differs from the Keras model by {report['max_difference']:.1e} in probability, "
                f"more than {report['tolerance']:.0e} ({report['precision']}): nothing was written to {folder}"
            )
    if report["library"]:
        report["library"] = str(folder / LIBRARY)
    return {"folder": str(folder), **report}


class OpenedRun(NamedTuple):
    """A run that is exported."""

    model: keras.Model
    config: Config
    labels: list


def open_run(run_folder):
    """The best model of a run, its config and labels; raises ConfigError where they cannot be read or do not agree."""
    _, config, labels = read_run(run_folder)
    model = load_model(run_folder)
    classes = model.output_shape[-1]
    if classes != len(labels):
        raise ConfigError(f"{run_folder}: labels.json has {len(labels)} labels, but best.keras gives {classes} classes")
    for weight in model.weights:
        if not np.isfinite(np.asarray(weight, np.float64)).all():
            raise ConfigError(f"{run_folder}: {weight.path} of best.keras holds what is no number: train it anew")
    return OpenedRun(model, config, labels)


def write_saved_model(opened, folder, native=False):
    """What :func:`export_run` does, into a folder that is not there yet; the difference is told, and not judged."""
    model, config, labels = opened
    if native and not native_status()["available"]:
        raise ConfigError(f"native operations cannot be exported: {native_status()['reason']}")
    with nullcontext() if native else portable():
        _save(fold_batch_norm(model), labels, config.data, folder)
    report = _describe(folder)
    in_python = sorted(_PYTHON_OPERATIONS.intersection(report["operations"]))
    if in_python:
        raise ExportError(f"the exported graph would need this Python process: it holds {', '.join(in_python)}")
    own = [name for name in report["operations"] if name.startswith("KerasStss>")]
    if own and not native:
        raise ExportError(f"the exported graph would need keras_stss's native library: {', '.join(own)}")
    if native and not own:
        raise ConfigError("this model has no operation that runs natively: export it without native")
    if native:
        (folder / LIBRARY).parent.mkdir()
        shutil.copyfile(dispatch.native_library(), folder / LIBRARY)
    report |= {"library": LIBRARY if native else None, "bytes": size(folder)}
    report |= {"precision": config.train.precision, "tolerance": TOLERANCES[config.train.precision]}
    return report | {"max_difference": _largest_difference(model, folder, config.data)}


def load_saved_model(folder):
    """A function from frames uint8 (batch, T, H, W, 3) to probabilities; native operations are in this process."""
    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    return lambda frames: signature(frames=tf.constant(frames))["probabilities"].numpy()


def _save(model, labels, data, folder):
    """Writes the two signatures of a model with logits."""
    frames_signature, jpeg_signature = _signatures(model, labels, data)
    signatures = {"serving_default": frames_signature, "serving_jpeg": jpeg_signature}
    save_functions(signatures, [variable.value for variable in model.variables], folder)


def _signatures(model, labels, data):
    """The tf.functions of ``serving_default`` and ``serving_jpeg``."""

    def classify(views):  # (B, T, crop, crop, 3)
        batch = tf.shape(views)[0]
        # An empty batch gets a clip that is dropped again: not every operation of a model takes empty tensors.
        spare = tf.zeros([tf.cast(batch == 0, tf.int32), *views.shape[1:]], views.dtype)
        logits = model(tf.concat([views, spare], 0), training=False)[:batch]
        probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))  # (B, K)
        # One row of labels a clip: Serving's REST rows need the batch dimension in every output.
        rows = tf.tile(tf.constant([labels], tf.string), [batch, 1])
        return {"probabilities": probabilities, "labels": rows}

    @tf.function(input_signature=[tf.TensorSpec([None, data.frames, None, None, 3], tf.uint8, name="frames")])
    def serve_frames(frames):
        return classify(_views(_check_frames(frames, data.frames), data))

    @tf.function(input_signature=[tf.TensorSpec([None, data.frames], tf.string, name="jpeg")])
    def serve_jpeg(jpeg):
        return classify(_decoded_views(_check_jpeg(jpeg, data.frames), data))

    return serve_frames, serve_jpeg


def _check_frames(frames, count):
    wanted = f"frames must have shape (batch, {count}, height, width, 3), height and width at least 1."
    return _check_shape(frames, rf"\d+, {count}, [1-9]\d*, [1-9]\d*, 3", wanted)


def _check_jpeg(jpeg, count):
    jpeg = _check_shape(jpeg, rf"\d+, {count}", f"jpeg must have shape (batch, {count}), one JPEG file a frame.")
    # TensorFlow's decoder takes some other formats for JPEG too, and speaks of Python functions when it does not.
    is_jpeg = tf.equal(tf.strings.substr(jpeg, 0, 3), b"\xff\xd8\xff")
    message = "jpeg must hold encoded JPEG files. Received something else at [clip, frame]: "
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(is_jpeg), [message, tf.where(~is_jpeg)])]):
        return tf.identity(jpeg)


def _check_shape(tensor, pattern, wanted):
    """The tensor, once its shape as text fully matches a regular expression.

    What a signature declares is not enforced when a client feeds a tensor, but TensorFlow believes it: a comparison of
    the rank would be folded to True. The text of a shape is not.
    """
    shape = tf.strings.reduce_join(tf.strings.as_string(tf.shape(tensor)), separator=", ")
    message = tf.strings.join([wanted, " Received: shape=(", shape, ")"])
    with tf.control_dependencies([tf.debugging.Assert(tf.strings.regex_full_match(shape, pattern), [message])]):
        return tf.identity(tensor)


def _views(frames, data):
    """uint8 (B, T, H, W, 3) -> uint8 (B, T, crop, crop, 3)."""
    shape = tf.shape(frames)
    folded = tf.reshape(frames, tf.concat([[shape[0] * data.frames], shape[2:]], 0))  # (B*T, H, W, 3)
    return tf.reshape(center_view(folded, data.resize, data.crop), [shape[0], data.frames, data.crop, data.crop, 3])


def _decoded_views(jpeg, data):
    """Encoded frames, string (B, T) -> uint8 (B, T, crop, crop, 3)."""

    def view(encoded):
        frame = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
        return center_view(frame[None], data.resize, data.crop)[0]

    side = data.crop
    views = tf.map_fn(view, tf.reshape(jpeg, [-1]), fn_output_signature=tf.TensorSpec([side, side, 3], tf.uint8))
    return tf.reshape(views, [tf.shape(jpeg)[0], data.frames, side, side, 3])


def _largest_difference(model, folder, data):
    """Largest absolute difference of probabilities, SavedModel - Keras model, on random clips of three sizes."""
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    random = np.random.default_rng(0)
    resized = (data.resize, data.resize) if isinstance(data.resize, int) else data.resize
    sizes = [(data.crop, data.crop), resized, (resized[0] * 3 // 4 + 1, resized[1] * 5 // 4)]
    tensor_float_32 = tf.config.experimental.tensor_float_32_execution_enabled()
    # On GPUs that have it, TensorFloat-32 rounds like half precision, and differently in fused operations.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        differences = []
        for clips, (height, width) in enumerate(sizes, start=1):
            frames = random.integers(0, 256, (clips, data.frames, height, width, 3), np.uint8)
            views = tf.stack([center_view(tf.constant(clip), data.resize, data.crop) for clip in frames])
            expected = tf.nn.softmax(tf.cast(model(views, training=False), tf.float32))
            difference = tf.abs(served(frames=tf.constant(frames))["probabilities"] - expected).numpy()
            differences.append(math.inf if np.isnan(difference).any() else float(difference.max()))
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(tensor_float_32)
    return max(differences)


def _describe(folder):
    """Signatures and op types of a SavedModel, as plain values."""
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    (meta_graph,) = saved.meta_graphs
    library = meta_graph.graph_def.library.function
    nodes = [*meta_graph.graph_def.node, *(node for function in library for node in function.node_def)]
    functions = {function.signature.name for function in library}
    signatures = {
        name: {"inputs": _describe_tensors(signature.inputs), "outputs": _describe_tensors(signature.outputs)}
        for name, signature in meta_graph.signature_def.items()
        if not name.startswith("__")  # initialisation, not for clients
    }
    return {
        "signatures": signatures,
        "operations": sorted({node.op for node in nodes} - functions),
    }


def _describe_tensors(tensors):
    return {
        name: {
            "tensor": tensor.name,
            "dtype": tf.dtypes.as_dtype(tensor.dtype).name,
            "shape": [None if axis.size < 0 else axis.size for axis in tensor.tensor_shape.dim],
        }
        for name, tensor in sorted(tensors.items())
    }
