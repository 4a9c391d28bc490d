"""Parameters and multiply-adds of a model, counted while its graph is laid out."""

import math
import re
from typing import NamedTuple

import keras

# The one place that every product passes: layers and functions of Keras call these modules by attribute.
from keras.src import backend

from keras_stss import blocks
from keras_stss.cost.build import replaced
from keras_stss.layers import MapConvBN
from keras_stss.ops import portable, reference

#: What :class:`Row` says of a layer that has a kernel and made no product that we saw.
NOT_COUNTED = "not counted"
#: The part of a top-level layer's name that says its stage, and its model where there are several.
STAGE = re.compile(r"(member\d+_)?(conv\d|pool\d|res\d|stage\d|mixed_\d[a-z])(?=_|$)")


class CostError(ValueError):
    """A model whose cost cannot be told. Its text is meant for the user."""


class Row(NamedTuple):
    """One layer: its own parameters and products, not those of the layers inside it.

    ``kind`` names the products (``conv``, ``matmul``, ``stss``, …), or the layer's class where there are none;
    ``parameters`` are trainable numbers, ``multiply_adds`` those of one clip.
    """

    layer: str
    kind: str
    stage: str
    output_shape: tuple
    parameters: int
    multiply_adds: int


def count(model, frames=8, size=224):
    """Counts the products of one clip, layer by layer, from the shapes that really occur.

    The model's graph is laid out for a clip of that shape (nothing is computed), and every convolution and matrix
    product that is made on the way is counted where it happens: output values times products per value. Self-similarity
    and the convolutions of similarity maps count by their definition, however they are computed: positions times window
    times channels, and positions times kernel. Zeros of a padding are multiplied like other values. Not counted, as in
    the papers: additions and products of single values (biases, normalisation, activations, softmax), pooling and
    movement of data.

    While it runs, functions of Keras are replaced in this process: no other thread should build or run models.

    Args:
        model: ``keras.Model`` of one input; sizes of the input that it leaves open are filled with 1 clip, ``frames``
            and ``size``, in the order (B, T, H, W, C).
        frames: T.
        size: H and W, one number or two.

    Returns:
        List of :class:`Row`, in the order in which the layers run.

    Raises:
        CostError: for a product that there is no rule for, or a size that is not known.
    """
    counter = _Counter(model)
    inputs = keras.KerasTensor(_shape(model, frames, size), model.inputs[0].dtype)
    with portable(), counter.watching():
        _Run(model)(inputs)
    return counter.rows()


def _shape(model, frames, size):
    if len(model.inputs) != 1:
        raise CostError(f"only models of one input can be counted. Received: {len(model.inputs)} inputs")
    height, width = (size, size) if isinstance(size, int) else size
    shape = tuple(model.inputs[0].shape)
    filled = {0: 1} if len(shape) != 5 else {0: 1, 1: frames, 2: height, 3: width}
    shape = tuple(filled.get(axis) if known is None else known for axis, known in enumerate(shape))
    if None in shape:
        raise CostError(f"the input's sizes must be known but for those of a clip. Received: shape={shape}")
    return shape


class _Run(keras.Operation):
    """Keras lays out the graph of an operation's ``call`` to tell its output's shape."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, inputs):
        return self.model(inputs, training=False)


class _Counter:
    """Which layer runs, and what was multiplied in it."""

    def __init__(self, model):
        self.model = model
        self.stack = []
        self.found = {}  # id of a layer → its entry; dictionaries keep the order
        self.claimed = set()  # parameters that an inner layer, or an earlier call, has counted
        self.inside = 0  # of products that are counted as a whole

    def watching(self):
        """Context in which products and layers report here."""
        places = [
            (keras.Layer, "__call__", self.watch_layer(keras.Layer.__call__)),
            (reference, "stss", self.watch(reference.stss, "stss", _stss)),
        ]
        for module, rules in RULES:
            places += [(module, name, self.watch(getattr(module, name), name, rules[name])) for name in rules]
        return replaced(places)

    def watch(self, function, name, rule):
        def watched(*args, **kwargs):
            self.inside += 1
            try:
                outputs = function(*args, **kwargs)
            finally:
                self.inside -= 1
            layer = self.stack[-1]
            if not self.inside and type(layer) not in DEFINITIONS:
                self.add(layer, name, rule(outputs, *args, **kwargs))
            return outputs

        return watched

    def watch_layer(self, call):
        def watched(layer, *args, **kwargs):
            entry = self.found.setdefault(id(layer), _Entry(layer, tuple(self.stack)))
            self.stack.append(layer)
            try:
                outputs = call(layer, *args, **kwargs)
            finally:
                self.stack.pop()
            if type(layer) in DEFINITIONS:
                self.add(layer, *DEFINITIONS[type(layer)](layer, outputs))
            self.claim(entry)
            entry.output = keras.tree.flatten(outputs)[0]
            return outputs

        return watched

    def add(self, layer, name, products):
        of_layer = self.found[id(layer)].products
        of_layer[name] = of_layer.get(name, 0) + products

    def claim(self, entry):
        """Inner layers have ended, and so have taken theirs, when the outer one ends."""
        for weight in entry.layer.trainable_weights:
            if id(weight) not in self.claimed:
                self.claimed.add(id(weight))
                entry.weights.append(weight)

    def rows(self):
        return [self.row(entry) for entry in self.found.values() if entry.weights or entry.products]

    def row(self, entry):
        path = [layer for layer in (*entry.outer, entry.layer) if layer is not self.model]
        kind = "+".join(entry.products) or type(entry.layer).__name__
        if not entry.products and any(len(weight.shape) > 1 for weight in entry.weights):
            kind = NOT_COUNTED
        return Row(
            layer="/".join(layer.name for layer in path) or self.model.name,
            kind=kind,
            stage=_stage(path),
            output_shape=tuple(entry.output.shape),
            parameters=sum(_size(weight) for weight in entry.weights),
            multiply_adds=sum(entry.products.values()),
        )


class _Entry:
    """What is known of one layer."""

    def __init__(self, layer, outer):
        self.layer = layer
        self.outer = outer  # the layers in whose call it ran
        self.products = {}  # name of the product → multiply-adds
        self.weights = []
        self.output = None


def _stage(path):
    """Where a layer stands: in a stage, in an inserted block, which counts as a stage of its own, or in neither."""
    name = path[0].name if path else ""
    if path and isinstance(path[0], BLOCKS):
        return name
    found = STAGE.match(name)
    return found[0] if found else name.replace("logits", "head") if name.endswith("logits") else "other"


def _size(tensor):
    if None in tuple(tensor.shape):
        raise CostError(f"a size inside the model is not known. Received: shape={tuple(tensor.shape)}")
    return math.prod(tensor.shape)


# What each product costs: (what it gave, what it was given) → multiply-adds.


def _stss(volume, features, *_, **__):
    return _size(volume) * features.shape[-1]


def _conv(outputs, inputs, kernel, *_, **__):
    return _size(outputs) * _size(kernel) // kernel.shape[-1]


def _depthwise_conv(outputs, inputs, kernel, *_, **__):
    return _size(outputs) * math.prod(kernel.shape[:-2])


def _separable_conv(outputs, inputs, depthwise, pointwise, *_, **__):
    return _size(outputs) // pointwise.shape[-1] * (_size(depthwise) + _size(pointwise))


def _conv_transpose(outputs, inputs, kernel, *_, **__):
    return _size(inputs) * _size(kernel) // kernel.shape[-1]


def _matmul(outputs, left, right):
    return _size(outputs) * left.shape[-1]


def _contraction(outputs, left, right, *_, **__):
    """The axes that are summed over are in both operands, the others in the output."""
    return _size(outputs) * math.isqrt(_size(left) * _size(right) // _size(outputs))


def _einsum(outputs, subscripts, *operands, **_):
    if len(operands) > 2:
        raise CostError(f"einsum of {len(operands)} operands has no one order of products. Received: {subscripts!r}")
    sizes = {}
    for labels, operand in zip(subscripts.replace(" ", "").split("->")[0].split(","), operands):
        left, dots, right = labels.partition("...")
        inner = len(operand.shape) - len(left) - len(right)
        names = [*left, *(f"...{place}" for place in range(inner, 0, -1) if dots), *right]
        for name, size in zip(names, operand.shape):
            sizes[name] = max(size, sizes.get(name, 1))
    return math.prod(sizes.values())


def _attention(outputs, query, key, value, *_, **__):
    """Scores of all pairs, and the mean that they weigh: (B, T, heads, C) with (B, S, heads, C)."""
    return _size(query) * key.shape[1] + _size(outputs) * key.shape[1]


def _no_rule(outputs, *_, **__):
    raise CostError(
        "the model has a step that there is no rule for: a loop, a recurrent layer, kron, correlate or cross"
    )


RULES = (
    (
        backend.nn,
        {
            "conv": _conv,
            "depthwise_conv": _depthwise_conv,
            "separable_conv": _separable_conv,
            "conv_transpose": _conv_transpose,
            "dot_product_attention": _attention,
        },
    ),
    (
        backend.numpy,
        {
            "matmul": _matmul,
            "einsum": _einsum,
            **dict.fromkeys(("dot", "tensordot", "inner", "vdot"), _contraction),
            **dict.fromkeys(("kron", "correlate", "cross"), _no_rule),
        },
    ),
    # A loop is laid out once and runs several times.
    (
        backend.core,
        dict.fromkeys(("while_loop", "fori_loop", "scan", "associative_scan", "map", "vectorized_map"), _no_rule),
    ),
    (backend, dict.fromkeys(("rnn", "lstm", "gru"), _no_rule)),
)


# Layers whose own products (not those of the layers inside) count by what they define, whatever they compute to get
# there: (layer, what it gave) → (name, multiply-adds).


def _map_conv(layer, outputs):
    return "conv", _size(outputs) // outputs.shape[-1] * _size(layer.kernel)


def _correlation(layer, outputs):
    """Each position with U·V others; the weights of the products are steps on single values."""
    return "correlation", _size(outputs) // outputs.shape[-1] * _size(layer.filters)


def _local_attention(layer, outputs):
    """Scores and the mean they weigh in the window (L, U, V), and the query with the embeddings of its three axes."""
    batch, time, height, width, _ = outputs.shape
    positions = batch * time * -(-height // layer.strides) * -(-width // layer.strides)
    offsets, (rows, columns) = len(layer.temporal_offsets), layer.window
    embeddings = layer.channels * offsets + layer.channels // 2 * (rows + columns)
    return "attention", positions * (2 * offsets * rows * columns * layer.channels + embeddings)


DEFINITIONS = {
    MapConvBN: _map_conv,
    blocks.CorrelationBlock: _correlation,
    blocks.LocalAttentionBlock: _local_attention,
}
#: Layers that are stages of their own.
BLOCKS = tuple(getattr(blocks, name) for name in blocks.__all__)
