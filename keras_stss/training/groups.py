"""Which weights learn how fast, and which decay."""

import re
from typing import NamedTuple

import keras

from keras_stss import blocks

#: Kinds of weights, in the order in which they are listed.
GROUPS = ("kernel", "block", "head", "head_bias", "bias", "norm")
NORMALISATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)
#: Layers that a config inserts. STM blocks that take the place of residual blocks are a network's own layers.
BLOCKS = tuple(getattr(blocks, name) for name in blocks.__all__)
#: The last layer of a network, and of each member of an ensemble.
HEAD = re.compile(r"(member\d+_)?logits")


class Group(NamedTuple):
    """Weights that learn alike.

    Attributes:
        name: one of ``GROUPS``.
        variables: the model's Keras variables.
        rate: by how much the learning rate is multiplied.
        decay: their weight decay.
        places: their positions among the model's trainable variables, whose order the optimizer keeps.
    """

    name: str
    variables: tuple
    rate: float
    decay: float
    places: tuple


def parameter_groups(model, train):
    """Sorts the trainable weights of a model by what they are.

    ``kernel``: kernels of the backbone; ``block``: those inside inserted motion blocks; ``head``, ``head_bias``: of the
    last, dense layer; ``bias``: all other biases, wherever they are; ``norm``: scale and shift of normalisation, and
    whatever is none of these (learned scalars, embeddings of positions, weights of a correlation), which as a rule does
    not decay either.

    Args:
        model: built Keras model.
        train: :class:`keras_stss.config.TrainConfig`.

    Returns:
        List of :class:`Group`, one for each name of ``GROUPS``, empty ones too. Every trainable variable is in exactly
        one of them.
    """
    layers = list(model._flatten_layers())
    inside = {
        "norm": _variables(layer for layer in layers if isinstance(layer, NORMALISATIONS)),
        "block": _variables(layer for layer in layers if isinstance(layer, BLOCKS)),
        "head": _variables(
            layer for layer in layers if isinstance(layer, keras.layers.Dense) and HEAD.fullmatch(layer.name)
        ),
    }
    found = {name: [] for name in GROUPS}
    for place, variable in enumerate(model.trainable_variables):
        found[_kind(variable, inside)].append((place, variable))
    rates = {"kernel": 1.0, **train.rates.model_dump()}
    decays = {"kernel": 1.0, **train.decays.model_dump()}
    return [
        Group(
            name,
            tuple(variable for _, variable in members),
            rates[name],
            train.weight_decay * decays[name],
            tuple(place for place, _ in members),
        )
        for name, members in found.items()
    ]


def _variables(layers):
    return {id(variable) for layer in layers for variable in layer.variables}


def _kind(variable, inside):
    name, known = variable.name, id(variable)
    if known in inside["norm"]:
        return "norm"
    if name == "bias":
        return "head_bias" if known in inside["head"] else "bias"
    if name != "kernel":
        return "norm"
    return next((place for place in ("head", "block") if known in inside[place]), "kernel")


def describe(groups):
    """Lines of a table of groups: tensors, parameters, factor of the learning rate, weight decay."""
    lines = [f"{'weights':<10}{'tensors':>8}{'parameters':>14}{'rate':>8}{'decay':>10}"]
    for group in groups:
        if group.variables:
            parameters = sum(int(variable.value.shape.num_elements()) for variable in group.variables)
            rate, decay = f"×{group.rate:g}", f"{group.decay:g}"
            lines.append(f"{group.name:<10}{len(group.variables):>8}{parameters:>14,}{rate:>8}{decay:>10}")
    return lines
