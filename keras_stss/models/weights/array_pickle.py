"""Pickled dictionaries of NumPy arrays, as Flax users write them. Runs no code from a file."""

import pickle

import numpy as np

from keras_stss.config import ConfigError

#: Element types that an array may have.
TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
#: What stands in a file for an array, by the module and name that it goes by there.
MAKERS = {
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy.core.numeric", "_frombuffer"): "buffer",
    ("numpy._core.numeric", "_frombuffer"): "buffer",
    ("numpy", "ndarray"): "class",
    ("numpy", "dtype"): "type",
}


def read_arrays(file, path):
    """Reads the arrays of a pickled nested dictionary.

    Args:
        file: opened file.
        path: its name, for messages.

    Returns:
        Dictionary of the keys, joined by ``/`` → NumPy array.

    Raises:
        ConfigError: for a file that holds anything but dictionaries and arrays.
    """
    content = _Unpickler(file, path).load()
    tensors = dict(_walk(content, "")) if isinstance(content, dict) else {}
    if not tensors:
        raise ConfigError(f"{path} holds no dictionary of arrays")
    return tensors


def _walk(content, prefix):
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _walk(value, f"{prefix}{key}/")
        elif isinstance(value, _Array):
            yield f"{prefix}{key}", value.content


class _Maker:
    """What stands in a pickle for an allowed name. A pickle may call it, but cannot change it."""

    __slots__ = ("kind",)

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, *arguments):
        if self.kind == "array":
            return _Array()
        if self.kind == "buffer":
            data, kind, shape, order = arguments
            array = _Array()
            array.__setstate__((1, shape, kind, order == "F", data))
            return array
        if self.kind == "type" and arguments and arguments[0] in TYPES:
            return _Type(arguments[0])
        raise pickle.UnpicklingError(f"an array of an unknown kind ({self.kind}{arguments})")

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it changes a function")


class _Type:
    __slots__ = ("name", "order")

    def __init__(self, name):
        self.name = name
        self.order = "="

    def __setstate__(self, state):
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")


class _Array:
    __slots__ = ("content",)

    def __setstate__(self, state):
        _, shape, kind, columns_first, data = state
        if not isinstance(kind, _Type) or not isinstance(data, bytes | bytearray):
            raise pickle.UnpicklingError("an array without a type or without bytes")
        flat = np.frombuffer(data, np.dtype(kind.name).newbyteorder(kind.order))
        flat = flat.astype(flat.dtype.newbyteorder("="))
        self.content = flat.reshape(shape, order="F" if columns_first else "C")


class _Unpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, text and arrays, and refuses every other name before it is looked up."""

    def __init__(self, file, path):
        super().__init__(file)
        self.path = path

    def find_class(self, module, name):
        if (module, name) in MAKERS:
            return _Maker(MAKERS[module, name])
        raise ConfigError(
            f"{self.path} is not loaded: besides arrays it holds {module}.{name}, and reading that would run code"
        )
