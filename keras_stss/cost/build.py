"""Models to be counted: of whose weights nobody asks the values."""

import contextlib

import keras
from keras.src import backend

from keras_stss.models import build_model

RANDOM = ("normal", "truncated_normal", "uniform")


def build_empty(config, classes):
    """Builds the model of a :class:`keras_stss.config.Config` with zeros for weights that are random or in a file."""
    members = tuple(member.model_copy(update={"pretrained": None}) for member in config.model.ensemble)
    bare = {"pretrained": None, "init": None, "ensemble": members}
    config = config.model_copy(update={"model": config.model.model_copy(update=bare)})
    # To draw the random numbers of a large model takes longer than to count it.
    with replaced([(backend.random, name, _zeros) for name in RANDOM]):
        return build_model(config, classes)


@contextlib.contextmanager
def replaced(places):
    """Inside it functions of Keras are others: list of (module or class, name, function)."""
    before = [(place, name, getattr(place, name)) for place, name, _ in places]
    try:
        for place, name, function in places:
            setattr(place, name, function)
        yield
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def _zeros(shape, *_, dtype=None, **__):
    return keras.ops.zeros(shape, dtype)
