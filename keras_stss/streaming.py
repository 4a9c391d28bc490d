"""Models on a live stream: one frame in, logits out, and what the next frame needs as an explicit state.

A causal model (``model.causal: true``), in which no frame sees a later one, needs of earlier frames only what its
temporal layers take from them: :func:`streaming_model` keeps that, and computes every frame once. Any other model gets
its last frames as a clip again and again: :func:`windowed_model`. Both are used alike::

    stream = streaming_model(load_model(run), average=8)
    state = stream.initial_state(1, 224, 224)
    for frame in frames:  # uint8 (1, 224, 224, 3)
        logits, state = stream.step(frame, state)

A state is a dictionary of arrays whose first axis is the batch. Zeros are the beginning of a clip, so a fresh state, or
zeros in one row, begin anew. A frame that is left out does no harm: the model sees the next one as following.

Layers that see other frames offer two methods beside ``call``, and an attribute ``causal`` that says whether they see
no later ones: ``state_shapes(input_shape)``, the names and shapes of their state for frames (B, 1, H, W, C); and
``step(frame, state, count)``, the output for the next frame and the new state. ``count`` (B,) is the number of frames
before this one.
"""

import functools
import os
import shutil
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_stss import layers
from keras_stss.config import ConfigError
from keras_stss.export import litert
from keras_stss.export.graph import save_functions
from keras_stss.export.place import size
from keras_stss.layers.frame_pairs import where_begun
from keras_stss.ops import portable

#: Layers that see one frame at a time, whatever the clip.
FRAMEWISE = (
    layers.ConvBN,
    layers.DepthwiseConvBN,
    layers.FrameMaxPooling,
    layers.NormalizeFrames,
    layers.ResizeFrames,
    layers.SeparableConvBN,
    keras.layers.Activation,
    keras.layers.Add,
    keras.layers.Concatenate,
    keras.layers.Dense,
    keras.layers.Dropout,
    keras.layers.Multiply,
    keras.layers.ReLU,
)
#: Frames are counted up to here, the last whole number that float32 knows all before.
MOST_FRAMES = 2**24
#: Of a class, lest its logarithm be infinite.
LEAST_PROBABILITY = 1e-30
#: Largest difference between logits of an exported step and of the model, relative to the largest logit: graphs that
#: are frozen or saved fuse what runs one by one in Keras.
TOLERANCE, INT8_TOLERANCE = 1e-3, 0.25
#: Frames over which they are compared.
CHECKED_FRAMES = 4


class StreamingModel:
    """What :func:`streaming_model` and :func:`windowed_model` give.

    Args:
        model: ``keras.Model`` from a dictionary of ``"frame"`` uint8 (B, H, W, 3) and the state to one of ``"logits"``
            (B, K) and the new state.
        shapes: function (batch, height, width) → {name: shape} of the state but for ``count`` (B,).
    """

    def __init__(self, model, shapes):
        self.model = model
        self._dtypes = {tensor.name: tensor.dtype for tensor in model.inputs if tensor.name != "frame"}
        self._shapes = functools.lru_cache(maxsize=16)(
            lambda batch, height, width: {"count": (batch,), **shapes(batch, height, width)}
        )
        self._run = tf.function(lambda inputs: model(inputs, training=False))

    def initial_state(self, batch=1, height=224, width=224):
        """The state before the first frame: {name: NumPy array of zeros}."""
        shapes = self._shapes(batch, height, width)
        return {name: np.zeros(shapes[name], dtype) for name, dtype in self._dtypes.items()}

    def step(self, frame, state):
        """The next frame of each clip of a batch.

        Args:
            frame: uint8 (B, H, W, 3), RGB, as the model was trained to see them.
            state: from :meth:`initial_state` or the step before, or read back from a file.

        Returns:
            (logits float32 (B, K), new state), tensors.

        Raises:
            ValueError: for a frame or state that does not fit.
        """
        self._check(frame, state)
        outputs = self._run({"frame": frame, **state})
        return outputs.pop("logits"), outputs

    def _check(self, frame, state):
        shape = tuple(frame.shape)
        if len(shape) != 4 or shape[-1] != 3 or keras.backend.standardize_dtype(frame.dtype) != "uint8":
            raise ValueError(
                f"frame must be uint8 (B, H, W, 3). Received: shape={shape}, dtype={np.dtype(frame.dtype).name}"
            )
        if state.keys() != self._dtypes.keys():
            raise ValueError(
                "state must hold what initial_state gives. Received: missing="
                f"{sorted(self._dtypes.keys() - state.keys())}, unknown={sorted(state.keys() - self._dtypes.keys())}"
            )
        for name, wanted in self._shapes(*shape[:3]).items():
            if tuple(state[name].shape) != wanted:
                raise ValueError(
                    f"state must be that of frames of shape {shape}: {name} of shape {wanted}. "
                    f"Received: shape={tuple(state[name].shape)}"
                )


def streaming_model(model, average=None):
    """The step of a causal model, on the weights of the model.

    Args:
        model: ``keras.Model`` as :func:`keras_stss.build_model` gives it with ``model.causal: true``, or loaded.
        average: over how many frames, the last ones, the consensus goes; 1 takes each frame by itself; None takes all
            since the clip began: the logits are those that the model gives for the clip so far.

    Returns:
        :class:`StreamingModel`.

    Raises:
        ConfigError: naming a layer that sees later frames, or one that is not known.
    """
    _check_model(model)
    _check_count("average", average, optional=True)
    stream = _Stream()
    known = {id(model.inputs[0]): ops.expand_dims(stream.frame, 1)}  # (B, 1, H, W, 3)
    timed = []
    for operation in model.operations:
        if isinstance(operation, keras.layers.InputLayer):
            continue
        try:
            inputs = keras.tree.map_structure(lambda tensor: known[id(tensor)], operation.input)
        except KeyError:
            raise ConfigError(f"{_describe(operation)} follows a layer that is used twice: no streaming form") from None
        layer = _timed(operation, average)
        if layer is None:
            known[id(operation.output)] = operation(inputs)
        else:
            timed.append((layer, operation.input))
            known[id(operation.output)] = stream.step(layer, inputs, layer.state_shapes(operation.input.shape))
    inside = keras.Model(model.inputs[0], [tensor for _, tensor in timed])

    def shapes(batch, height, width):
        found = inside.compute_output_shape((batch, 1, height, width, 3))
        return {
            f"{layer.name}_{name}": state
            for (layer, _), shape in zip(timed, found)
            for name, state in layer.state_shapes(tuple(shape)).items()
        }

    return StreamingModel(stream.model(known[id(model.outputs[0])], f"{model.name}_stream"), shapes)


def windowed_model(model, frames, average=8):
    """The step of any model that sees the last frames as a clip (STM, Wang et al., section 4: 7 frames kept).

    Before there are enough frames, the first is repeated.

    Args:
        model: ``keras.Model`` from uint8 frames (B, T, H, W, 3) to logits.
        frames: T, as the model was trained.
        average: the probabilities of so many predictions, the last ones, are averaged; None takes all since the clip
            began. The logits are those of the average.

    Returns:
        :class:`StreamingModel`.

    Raises:
        ConfigError: for a model of another form.
    """
    _check_model(model)
    _check_count("frames", frames)
    _check_count("average", average, optional=True)
    stream, window, scores = _Stream(), _Window(frames), _Consensus("scores", average)
    shape = (None, 1, None, None, 3)
    clip = stream.step(window, ops.expand_dims(stream.frame, 1), window.state_shapes(shape))  # (B, T, H, W, 3)
    each = ops.expand_dims(ops.softmax(ops.cast(model(clip), "float32"), axis=-1), 1)  # (B, 1, K)
    mean = stream.step(scores, each, scores.state_shapes(each.shape))  # (B, K)
    logits = ops.log(ops.maximum(mean, LEAST_PROBABILITY))  # (B, K)

    def shapes(batch, height, width):
        inside = {window: (batch, 1, height, width, 3), scores: (batch, 1, model.output_shape[-1])}
        return {
            f"{layer.name}_{name}": state
            for layer, shape in inside.items()
            for name, state in layer.state_shapes(shape).items()
        }

    return StreamingModel(stream.model(logits, f"{model.name}_window"), shapes)


def save_saved_model(stream, folder, height, width):
    """Writes a stream's step as a SavedModel of stock TensorFlow operations, for any batch.

    Its signatures are ``serving_default``, from ``frame`` uint8 (B, height, width, 3) and the state to ``logits``
    (B, K) and the new state by the same names; and ``initial_state``, from ``batch`` (int32) to the state of zeros.

    Args:
        stream: :class:`StreamingModel`.
        folder: that is not there yet, or is empty.
        height, width: of the frames.

    Returns:
        dict that JSON can hold: ``file``, ``bytes``, and ``max_difference``, the largest between the logits of the
        export and of the stream over some frames.

    Raises:
        ConfigError: where the folder cannot be used. RuntimeError: where the export computes something else.
    """
    return _put(folder, lambda unfinished: _save(stream, unfinished, None, height, width), _run_saved_model, stream)


def save_litert(stream, file, height, width, batch=1, int8=False):
    """Writes a stream's step as a LiteRT file, whose signature ``serving_default`` is that of the SavedModel.

    A client begins with zeros of the shapes that the signature's inputs have.

    Args:
        stream: :class:`StreamingModel`.
        file: that is not there yet.
        height, width, batch: of the frames; a LiteRT file has them fixed.
        int8: weights are held in 8 bits, and converted as they are used (dynamic-range quantisation): a quarter of the
            size, logits that differ visibly.

    Returns:
        As :func:`save_saved_model`.

    Raises:
        ConfigError: where the file cannot be written. RuntimeError: where the export computes something else.
    """

    def save(unfinished):
        with tempfile.TemporaryDirectory() as folder:
            _save(stream, folder, batch, height, width)
            litert.convert(folder, unfinished, int8)

    return _put(file, save, _run_litert, stream, INT8_TOLERANCE if int8 else TOLERANCE)


def _put(target, save, run, stream, tolerance=TOLERANCE):
    """Saves beside the target, compares what runs there with the stream, and renames."""
    target = Path(os.path.abspath(target))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{target} is there already: name another, or remove it")
    unfinished = target.with_name(f".{target.name}.unfinished-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save(unfinished)
        found, wanted = run(unfinished, stream)
        difference = float(np.abs(found - wanted).max())
        # Written this way round, a difference that is not a number fails too.
        if not difference <= tolerance * np.abs(wanted).max():
            raise RuntimeError(
                f"the exported step gives other logits, by {difference:.1e} where the largest is "
                f"{np.abs(wanted).max():.1e}: nothing was written to {target}"
            )
        os.replace(unfinished, target)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)
    return {"file": str(target), "bytes": size(target), "max_difference": difference}


def _save(stream, folder, batch, height, width):
    zeros = stream.initial_state(1, height, width)

    @tf.function
    def step(**inputs):
        return stream.model(inputs, training=False)

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, name="batch")])
    def initial_state(batch):
        return {name: tf.zeros([batch, *value.shape[1:]], value.dtype) for name, value in zeros.items()}

    specs = {name: tf.TensorSpec([batch, *value.shape[1:]], value.dtype, name) for name, value in zeros.items()}
    frame = tf.TensorSpec([batch, height, width, 3], tf.uint8, "frame")
    with portable():
        signatures = {"serving_default": step.get_concrete_function(frame=frame, **specs)}
    if batch is None:
        signatures["initial_state"] = initial_state
    save_functions(signatures, [variable.value for variable in stream.model.variables], folder)


def _run_saved_model(folder, stream):
    signatures = tf.saved_model.load(str(folder)).signatures
    step = signatures["serving_default"]
    shape = step.structured_input_signature[1]["frame"].shape
    state = signatures["initial_state"](batch=tf.constant(2))
    return _compare(stream, (2, *shape[1:]), state, step)


def _run_litert(file, stream):
    step = litert.open_signature(file)
    details = step.get_input_details()
    state = {name: np.zeros(each["shape"], each["dtype"]) for name, each in details.items()}
    return _compare(stream, state.pop("frame").shape, state, step)


def _compare(stream, shape, state, step):
    """Logits of an export and of the stream over some frames: two arrays (frames, B, K)."""
    random = np.random.default_rng(0)
    expected, found, wanted = stream.initial_state(*shape[:3]), [], []
    # The same form of each operation: in a clip of noise maxima are so near that they change places with the rounding.
    ours = tf.function(lambda inputs: stream.model(inputs, training=False))
    for _ in range(CHECKED_FRAMES):
        frame = random.integers(0, 256, shape, np.uint8)
        state = dict(step(frame=frame, **state))
        with portable():
            expected = dict(ours({"frame": frame, **expected}))
        found.append(np.array(state.pop("logits")))
        wanted.append(np.array(expected.pop("logits")))
    return np.array(found), np.array(wanted)


def _check_model(model):
    if not hasattr(model, "operations") or len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ConfigError("only a functional model of one input, frames, and one output, logits, can take a stream")


def _check_count(name, value, optional=False):
    if (value is None and optional) or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return
    raise ValueError(f"{name} must be a whole number from 1{', or None' * optional}. Received: {name}={value!r}")


def _timed(operation, average):
    """What steps in an operation's place, or None where frames go through it one by one."""
    # Functions of keras.ops stand in the graph as operations of a class of the same name, which is not public.
    if type(operation).__name__ == "Mean" and not isinstance(operation, keras.Layer):
        rank = len(operation.input.shape)
        axes = [axis % rank for axis in operation.axis or range(rank)]
        if axes == [1] and rank == 3 and not operation.keepdims:
            return _Consensus("consensus", average)
        if 0 not in axes and 1 not in axes:
            return None
    elif isinstance(operation, FRAMEWISE) and getattr(operation, "axis", -1) == -1:
        return None
    elif hasattr(operation, "step"):
        if operation.causal:
            return operation
        raise ConfigError(
            f"{_describe(operation)} sees frames that come later: build the model with model.causal: true, SELFY "
            "blocks with temporal_offsets of 0 and less (weights of the other form fit: model.init), or give the model "
            "its last frames again and again, as windowed_model does"
        )
    raise ConfigError(
        f"{_describe(operation)} has no streaming form; give the model its last frames again and again, as "
        "windowed_model does"
    )


def _describe(operation):
    return f"{operation.name} ({type(operation).__name__})"


class _Stream:
    """A functional model from a frame and a state to logits and the next state, while it is put together."""

    def __init__(self):
        self.frame = keras.Input((None, None, 3), dtype="uint8", name="frame")  # (B, H, W, 3)
        self.count = keras.Input((), dtype="int32", name="count")  # (B,)
        self.inputs = {"frame": self.frame, "count": self.count}
        self.outputs = {"count": ops.minimum(self.count + 1, MOST_FRAMES)}

    def step(self, layer, inputs, shapes):
        """Applies a layer's ``step``, with a state of its own."""
        names = {name: f"{layer.name}_{name}" for name in shapes}
        step = _Step(layer, name=f"{layer.name}_step")
        state = {
            name: keras.Input(shape[1:], dtype=step.state_dtype, name=names[name]) for name, shape in shapes.items()
        }
        outputs, after = step(inputs, state, self.count)
        self.inputs |= {names[name]: tensor for name, tensor in state.items()}
        self.outputs |= {names[name]: tensor for name, tensor in after.items()}
        return outputs

    def model(self, logits, name):
        return keras.Model(self.inputs, {"logits": logits, **self.outputs}, name=name)


class _Step(keras.layers.Layer):
    """Calls ``step`` of a layer, which is in another model and lends its weights.

    A state is float32 (or bytes) outside, whatever the layer computes in: NumPy and every runtime know that. What goes
    in, and the layer's weights, Keras casts as it does for a call of the layer.
    """

    def __init__(self, layer, **kwargs):
        policy = getattr(layer, "dtype_policy", None)
        super().__init__(dtype=policy, autocast=policy is not None, **kwargs)
        self.layer = layer
        self.state_dtype = getattr(layer, "state_dtype", "float32")

    def call(self, frame, state, count):
        outputs, after = self.layer.step(frame, state, count)
        return outputs, {name: ops.cast(value, self.state_dtype) for name, value in after.items()}


class _Consensus:
    """The mean over the last frames, or over all: (B, 1, C) → (B, C)."""

    def __init__(self, name, frames):
        self.name = name
        self.frames = frames

    def state_shapes(self, input_shape):
        batch, _, channels = input_shape
        if self.frames is None:
            return {"mean": (batch, channels)}
        return {"last": (batch, self.frames - 1, channels)} if self.frames > 1 else {}

    def step(self, frame, state, count):
        if not state and self.frames == 1:
            return frame[:, 0], {}
        wide = ops.cast(frame, "float32")  # (B, 1, C)
        count = ops.cast(count[:, None] + 1, "float32")  # (B, 1)
        if self.frames is None:
            mean = state["mean"] + (wide[:, 0] - state["mean"]) / count
            return ops.cast(mean, frame.dtype), {"mean": mean}
        all_of_them = ops.concatenate([state["last"], wide], axis=1)  # (B, frames, C), zeros before the first
        mean = ops.sum(all_of_them, axis=1) / ops.minimum(count, float(self.frames))
        return ops.cast(mean, frame.dtype), {"last": all_of_them[:, 1:]}


class _Window:
    """The last frames as a clip: (B, 1, H, W, 3) → (B, T, H, W, 3)."""

    name = "window"
    state_dtype = "uint8"

    def __init__(self, frames):
        self.frames = frames

    def state_shapes(self, input_shape):
        return {"frames": (input_shape[0], self.frames - 1, *input_shape[2:])} if self.frames > 1 else {}

    def step(self, frame, state, count):
        if not state:
            return frame, {}
        # LiteRT does not choose between bytes.
        both = (ops.cast(each, "int32") for each in (state["frames"], ops.repeat(frame, self.frames - 1, axis=1)))
        clip = ops.concatenate([ops.cast(where_begun(count, *both), "uint8"), frame], axis=1)  # (B, T, H, W, 3)
        return clip, {"frames": clip[:, 1:]}
