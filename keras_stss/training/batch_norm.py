"""Batch normalisation that keeps its statistics, or takes them over all devices."""

import contextlib
import functools
import logging
import re

import keras
import numpy as np

from keras_stss.config import ConfigError
from keras_stss.layers.map_conv import over_devices
from keras_stss.training.groups import BLOCKS
from keras_stss.training.workers.distribute import components

log = logging.getLogger(__name__)

#: Names of an ensemble's layers begin with their member's.
MEMBER = re.compile(r"member\d+_")


def prepare_batch_norm(model, train):
    """Sets up the batch normalisation of a model, nested layers included, as ``train`` says.

    ``batch_norm: frozen``: all of it normalises with its moving statistics, which stay as they are, and scale and shift
    do not learn. ``partial``: all but the backbone's first, which sees what the data set's pictures are like (TSN, Wang
    et al., ECCV 2016, section 3.2); of an ensemble, each member's first. ``sync_batch_norm``: what still learns takes
    its statistics over the clips of all devices.

    These are states of this model object alone: see :func:`ordinary` for the files.

    Args:
        model: built Keras model. Call this before the model's trainable variables are asked for.
        train: :class:`keras_stss.config.TrainConfig`.
    """
    learning = layers(model)
    if train.batch_norm != "train":
        kept = [] if train.batch_norm == "frozen" else _first(model)
        for layer in learning:
            layer.trainable = any(layer is each for each in kept)
        learning = kept
    if train.sync_batch_norm:
        for layer in learning:
            layer.synchronized = True
            layer._moments = functools.partial(_moments_over_devices, layer)


def _moments_over_devices(layer, inputs, mask):
    """Mean and variance over the clips of all devices, in two exchanges.

    Keras' own takes the variance as E[x²] - E[x]², which float32 loses where the mean is large beside the deviation:
    with 30 ± 0.03 it gives 0 to 0.0006 for 0.0009.
    """
    if mask is not None:
        return type(layer)._moments(layer, inputs, mask)
    return over_devices(*keras.ops.moments(inputs, axes=layer._reduction_axes))


def layers(model):
    """All layers of batch normalisation in a model."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


def _first(model):
    """The first batch normalisation of the backbone, or of each member's of an ensemble."""
    first = {}
    for layer in model.layers:
        found = [] if isinstance(layer, BLOCKS) else layers(layer)
        if found:
            member = MEMBER.match(layer.name)
            first.setdefault(member and member.group(), found[0])
    return list(first.values())


def statistics(model):
    """The moving statistics of the batch normalisation that still learns."""
    return [
        variable
        for layer in layers(model)
        if layer.trainable
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


def check_frozen(model):
    """Looks whether what is frozen has learned something before; call it when the weights to start from are loaded.

    Raises:
        ConfigError: where a frozen scale is all zero, as in the last normalisation of new residual branches: these
            would be silent for ever. Statistics that were never taken are worth a warning.
    """
    silent, new = [], []
    for layer in layers(model):
        if layer.trainable:
            continue
        name = layer.path
        mean, variance, gamma = (
            np.asarray(components(variable)[0]) for variable in (layer.moving_mean, layer.moving_variance, layer.gamma)
        )
        if not gamma.any():
            silent.append(name)
        elif not mean.any() and (variance == 1.0).all():
            new.append(name)
    if silent:
        raise ConfigError(
            f"train.batch_norm freezes a scale that is still zero, so that its block can never learn: {_list(silent)}. "
            "Start from trained weights with model.init=…, or set train.batch_norm=train"
        )
    if new:
        log.warning(
            "train.batch_norm freezes layers that have no statistics yet and so will normalise nothing: %s. "
            "Start from trained weights (model.init, model.pretrained), or set train.batch_norm=train",
            _list(new),
        )


def _list(names):
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


@contextlib.contextmanager
def ordinary(model):
    """Inside it no batch normalisation is frozen or synchronized: so a model is saved.

    What a file holds is then an ordinary model, which others fine-tune, on other backends too, without meeting flags
    that a recipe of ours has set.
    """
    flags = [(layer, layer.trainable, layer.synchronized) for layer in layers(model)]
    try:
        for layer, _, _ in flags:
            layer.trainable, layer.synchronized = True, False
        yield
    finally:
        for layer, trainable, synchronized in flags:
            layer.trainable, layer.synchronized = trainable, synchronized
