"""keras_stss: motion-aware video recognition for Keras."""

import importlib
import importlib.abc
import importlib.util
import sys

__version__ = "0.1.0"
__all__ = [
    "blocks",
    "build_model",
    "feature_extractor",
    "layers",
    "list_models",
    "list_recipes",
    "load_model",
    "ops",
    "visualize",
]

_HOMES = dict.fromkeys(("build_model", "feature_extractor", "list_models", "load_model"), "keras_stss.models")
_HOMES["list_recipes"] = "keras_stss.config.recipes"


def __getattr__(name):
    """Loads on first use, so that a bad config is refused before Keras and TensorFlow have started."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"keras_stss.{name}")
    raise AttributeError(f"module 'keras_stss' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])


def _register():
    """Importing the layers registers them, so that Keras loads a model that holds them without custom_objects."""
    importlib.import_module("keras_stss.blocks")


class _WithKeras(importlib.abc.MetaPathFinder):
    """Registers the layers as soon as somebody imports Keras, for whom alone they have to be registered.

    Where one of this package's own modules imports it, they wait for that module's end, since they may need it.
    """

    def __init__(self):
        self.running = 0

    def find_spec(self, name, path=None, target=None):
        if name != "keras" and not name.startswith("keras_stss."):
            return None
        sys.meta_path.remove(self)  # the search below must not come back here
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)  # a search may be all: the import comes later, or never
        if spec is None or not hasattr(spec.loader, "exec_module"):
            return spec
        run = spec.loader.exec_module

        def run_and_register(module):
            self.running += 1
            try:
                run(module)
            finally:
                self.running -= 1
            if not self.running and "keras" in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                _register()

        spec.loader.exec_module = run_and_register
        return spec


if "keras" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WithKeras())
