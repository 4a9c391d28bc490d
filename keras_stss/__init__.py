"""keras_stss: motion-aware video recognition for Keras."""

import importlib

__version__ = "0.1.0"
__all__ = ["blocks", "build_model", "layers", "load_model", "ops"]

_HOMES = {"build_model": "keras_stss.models", "load_model": "keras_stss.models"}


def __getattr__(name):
    """Loads on first use, so that a bad config is refused before Keras and TensorFlow have started."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"keras_stss.{name}")
    raise AttributeError(f"module 'keras_stss' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
