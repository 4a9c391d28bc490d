"""What the tables of names and layouts are made of, and how layouts are turned to Keras'."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

SHIFT_DIVISOR = 8


class _Number(int):
    """A number that a format may add to: ``f"{number:+1}"``."""

    def __format__(self, term):
        return str(self + int(term or 0))


class Rule(NamedTuple):
    """Where one kind of layer belongs.

    ``pattern`` matches the layer's whole name there. ``target`` is the layer's path here, a format of the pattern's
    groups; numbers may be taken one up, ``{0:+1}``, or one down, ``{0:-1}``, since the two sides count from
    different ends. ``stream`` tells which axes of the weights are channels of the residual stream, the ones that a
    temporal shift moves: "in", "out", "in out" or none.
    """

    pattern: str
    target: str
    layout: str
    stream: str = ""


def arrange(value, layout, shape):
    """PyTorch's layout (out, in, …) → Keras'; None where the number of axes does not fit the layout.

    ``shape`` is that of the variable here, which an inflated kernel takes its length in time from: the 2-D kernel at
    each time, divided by their number (Carreira and Zisserman, CVPR 2017, section 2.1).
    """
    if layout == "bn":
        return value if value.ndim == 1 else None
    if value.ndim == 1:
        return value  # a bias
    if layout == "linear":
        value = value.reshape(value.shape[:2]) if value.shape[2:].count(1) == value.ndim - 2 else value
        return value.T if value.ndim == 2 else None
    if layout == "conv3d":
        return value.transpose(2, 3, 4, 1, 0) if value.ndim == 5 else None
    if value.ndim == 5 and value.shape[2] == 1:
        value = value[:, :, 0]  # a 3-D kernel of one frame
    if value.ndim != 4:
        return None
    if layout == "inflated":
        return np.repeat(value.transpose(2, 3, 1, 0)[None] / shape[0], shape[0], axis=0)
    # Depthwise kernels are (channel, 1, …), transposed ones (in, out, …).
    return value.transpose((2, 3, 1, 0) if layout == "conv" else (2, 3, 0, 1))


def as_it_is(value, layout, shape):
    """Keras' own layout."""
    return value


def without_ones(value, layout, shape):
    """Flax' layout, which is Keras' but for statistics (1, …, C) and heads (1, …, in, out)."""
    axes = {"bn": 1, "linear": min(2, len(shape))}.get(layout, value.ndim)
    extra = value.ndim - axes
    return value.reshape(value.shape[extra:]) if all(side == 1 for side in value.shape[:extra]) else None


BN = ("gamma", "beta", "moving_mean", "moving_variance")


class Kind(NamedTuple):
    """How a kind of file names variables and lays them out."""

    separator: str  # between a layer and its variable
    bn: dict  # variables there → here
    other: dict
    arrange: Callable  # (value, layout, shape here) → value, or None


KINDS = {
    "torch": Kind(
        ".",
        dict(zip(("weight", "bias", "running_mean", "running_var"), BN)),
        {"weight": "kernel", "bias": "bias"},
        arrange,
    ),
    # Keras files number a layer's variables, or name them.
    "keras": Kind(
        "/",
        {**dict(zip("0123", BN)), **{name: name for name in BN}},
        {"0": "kernel", "1": "bias", "kernel": "kernel", "bias": "bias"},
        as_it_is,
    ),
    "flax": Kind(
        "/", dict(zip(("scale", "bias", "mean", "var"), BN)), {"kernel": "kernel", "bias": "bias"}, without_ones
    ),
}
#: Tensors without a use, and why.
COUNTERS = MappingProxyType({r".*\.num_batches_tracked": "a counter, without effect on the outputs"})


class Origin(NamedTuple):
    """What a file's names say of the model that they come from."""

    code: str
    backbone: str  # "" for a model of this library
    kind: str = "torch"  # a key of KINDS
    rules: tuple = ()
    classes: int | None = None
    shifted: frozenset | None = None  # residual blocks with a shift, such as "res2_0"; None for an image model
    section: Mapping = MappingProxyType({})  # keys of the model's section that are not the defaults
    block: str | None = None  # "selfy" or "motion_squeeze", after res3
    settings: Mapping = MappingProxyType({})  # of the block
    unused: Mapping = COUNTERS  # pattern of a name → reason
    constants: Mapping = MappingProxyType({})  # pattern of a path here → value that the original has there unnamed

    def model(self):
        """The ``model`` section of a config of this model."""
        section = {"backbone": self.backbone, "temporal": "tsm" if self.shifted else "tsn", **self.section}
        if self.block:
            options = {key: list(value) if isinstance(value, tuple) else value for key, value in self.settings.items()}
            section["insert"] = {"res3": {self.block: options}}
        return section

    def place(self, name):
        """(path of the variable here, layout, stream) of a name there, or None."""
        kind = KINDS[self.kind]
        module, _, leaf = name.rpartition(kind.separator)
        for rule in self.rules:
            if match := re.fullmatch(rule.pattern, module):
                variables = kind.bn if rule.layout == "bn" else kind.other
                if leaf not in variables:
                    return None
                layer = rule.target.format(*(_Number(group) for group in match.groups()))
                return f"{layer}/{variables[leaf]}", rule.layout, rule.stream
        return None


def swap_shifted(value, stream):
    """Exchanges the stream's first eighth of channels with its second.

    A shift that takes the first from the past and the second from the future is then one that takes the first from the
    future and the second from the past, as here: the same function with other names for the channels.
    """
    for side in stream.split():
        if side == "in" and value.ndim == 1:
            continue  # a bias
        axis = {"in": -2, "out": -1}[side]
        part = value.shape[axis] // SHIFT_DIVISOR
        order = np.arange(value.shape[axis])
        order[: 2 * part] = np.roll(order[: 2 * part], part)
        value = np.take(value, order, axis)
    return value


def find_head(modules, tensors, names):
    """(name of the head among ``names``, its classes), or two None."""
    head = next((name for name in names if name in modules), None)
    return head, len(tensors[f"{head}.weight"]) if head else None
