"""Tensors by name from weight files: PyTorch (zip and legacy), safetensors, Keras, Flax. Runs no code from a file.

A PyTorch file is a pickle, which may name any function to be called while it is read. Here nothing is called but what
rebuilds tensors, as under PyTorch's ``weights_only``; PyTorch itself is not needed.
"""

import io
import json
import math
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from keras_stss.config import ConfigError
from keras_stss.models.weights.array_pickle import read_arrays

#: Element types of PyTorch's storages. bfloat16 is the upper half of a float32 and is read as bits.
STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
#: The same of safetensors.
SAFETENSORS = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bfloat16",
    "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip
#: Names that training scripts store beside the weights. They are taken for a mark that says nothing, and never called.
HARMLESS = {
    ("argparse", "Namespace"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("torch", "Size"),
    ("torch", "device"),
}
#: Keys under which training scripts keep the weights.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net")

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
#: The largest header that the safetensors format allows, in bytes.
HEADER_LIMIT = 100_000_000


def read_tensors(path):
    """Reads every tensor of a weight file.

    Args:
        path: PyTorch (``.pth``, ``.pt``, ``.pth.tar``), safetensors, or Keras (``.keras``, ``.h5``) file, or a pickled
            dictionary of NumPy arrays.

    Returns:
        (kind, tensors): ``"torch"``, ``"keras"`` or ``"flax"`` (the pickled dictionary), and a dictionary of name →
        NumPy array. Keras' names are ``layer/variable``, variables numbered where the file does not name them.

    Raises:
        ConfigError: where there is no such file, it is damaged, of another format, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no weight file at {path}")
    with path.open("rb") as file:
        head = file.read(16)
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path)
        if head.startswith(HDF5_MAGIC):
            with h5py.File(path) as file:
                return "keras", _read_hdf5(file)
        if path.suffix == ".safetensors" or head[8:9] == b"{":
            return "torch", _read_safetensors(path)
        if head.startswith(b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")):
            return _read_legacy(path)
        # Protocol 3 is the first that knows bytes; before it they were text, to be turned by functions.
        if head[:1] == b"\x80" and 3 <= head[1] <= pickle.HIGHEST_PROTOCOL:
            with path.open("rb") as file:
                return "flax", read_arrays(file, path)
    except ConfigError:
        raise
    except Exception as error:
        # Readers of damaged files raise whatever the next byte leads them to.
        raise ConfigError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    if tarfile.is_tarfile(path):
        raise ConfigError(f"{path} was written by PyTorch 0.1, whose tar format is not read; save it with a newer one")
    if head.startswith(b"PK"):
        raise ConfigError(f"{path} is damaged or incomplete: the end of a PyTorch or Keras file is missing")
    raise ConfigError(f"{path} is no PyTorch, safetensors, Keras or Flax file")


def _read_archive(path):
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "model.weights.h5" in names:
            with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
                return "keras", _read_hdf5(file)
        pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ConfigError(f"{path} is a zip file, but neither PyTorch's nor Keras'")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in names:
            raise ConfigError(f"{path} is a TorchScript program; save its state_dict() instead")
        order = archive.read(f"{root}byteorder").decode() if f"{root}byteorder" in names else "little"
        content = _TensorUnpickler(io.BytesIO(archive.read(pickles[0])), path).load()

        def read(storage):
            entry = archive.getinfo(f"{root}data/{storage.key}")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ConfigError(f"{path} is compressed, which PyTorch never does")
            return archive.read(entry)

        return "torch", _collect(content, path, read, "<" if order == "little" else ">")


def _read_legacy(path):
    """PyTorch before 1.6: five pickles (magic, version, machine, content, storage keys), then the storages' bytes."""
    with path.open("rb") as file:
        _TensorUnpickler(file, path).load()  # the magic number
        _TensorUnpickler(file, path).load()  # the version
        machine = _TensorUnpickler(file, path).load()
        reader = _TensorUnpickler(file, path)
        content = reader.load()
        data = {}
        for key in _TensorUnpickler(file, path).load():
            (count,) = struct.unpack("<q", file.read(8))
            data[key] = file.read(count * reader.storages[key].itemsize)
    order = "<" if machine.get("little_endian", True) else ">"
    return "torch", _collect(content, path, lambda storage: data[storage.key], order)


class _Storage(NamedTuple):
    key: str
    dtype: str
    offset: int  # of a view into it, in elements

    @property
    def itemsize(self):
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


class _Name:
    """What stands in a pickle for an allowed name. A pickle may call it, but cannot change it."""

    __slots__ = ("name",)

    def __init__(self, name):
        self.name = name

    def __call__(self, *arguments):
        if self.name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            storage, offset, shape, strides = arguments[:4]
            if not isinstance(storage, _Storage):
                raise pickle.UnpicklingError("a tensor without a storage")
            return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))
        if self.name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return arguments[0]
        raise pickle.UnpicklingError(f"a tensor of an unknown kind ({self.name})")

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it changes a function")


class _Ignored:
    """Stands for a class or function of :data:`HARMLESS`, and for what it makes: nothing."""

    __slots__ = ()

    def __new__(cls, *arguments, **options):
        return super().__new__(cls)

    def __setstate__(self, state):
        pass


class _TensorUnpickler(pickle.Unpickler):
    """Reads containers, numbers, text and tensors, and refuses every other name before it is looked up."""

    def __init__(self, file, path):
        super().__init__(file, encoding="utf-8")
        self.path = path
        self.storages = {}

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name.startswith("_rebuild_"):
            return _Name(name)
        if module == "torch" and name in STORAGES:
            return _Name(name)
        if (module, name) in HARMLESS:
            return _Ignored
        raise ConfigError(
            f"{self.path} is not loaded: besides tensors it holds {module}.{name}, and reading that would run code. If "
            "you trust it, load it in PyTorch and save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
        )

    def persistent_load(self, pid):
        kind, storage_type, key, _, _, *view = pid
        if kind != "storage" or getattr(storage_type, "name", None) not in STORAGES:
            raise pickle.UnpicklingError(f"unknown storage {pid!r}")
        offset = view[0][1] if view and view[0] else 0
        self.storages[key] = _Storage(key, STORAGES[storage_type.name], offset)
        return self.storages[key]


def _collect(content, path, read, order):
    """The tensors of a checkpoint's content, as arrays; ``read`` gives a storage's bytes."""
    if isinstance(content, Mapping):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
        tensors = {name: tensor for name, tensor in content.items() if isinstance(tensor, _Tensor)}
        if tensors:
            data = {}
            for tensor in tensors.values():
                if tensor.storage.key not in data:
                    data[tensor.storage.key] = _decode(read(tensor.storage), tensor.storage.dtype, order)
            return {str(name): _view(tensor, data[tensor.storage.key]) for name, tensor in tensors.items()}
    keys = f" Its keys: {', '.join(map(str, list(content)[:8]))}." if isinstance(content, Mapping) else ""
    raise ConfigError(f"{path} holds no state dict, that is, no dictionary of tensors.{keys}")


def _decode(data, dtype, order):
    """Bytes → flat array in the machine's byte order."""
    if dtype == "bfloat16":
        bits = np.frombuffer(data, f"{order}u2").astype(np.uint32) << 16
        return bits.view(np.float32)
    values = np.frombuffer(data, np.dtype(dtype).newbyteorder(order))
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _view(tensor, flat):
    """The tensor's elements in their flat storage; the strides come from the file and must stay inside."""
    offset = tensor.storage.offset + tensor.offset
    size = math.prod(tensor.shape)
    last = offset + sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides))
    if len(tensor.shape) != len(tensor.strides) or min((0, *tensor.shape, *tensor.strides, offset)) < 0:
        raise ValueError(f"a tensor has shape {tensor.shape} and strides {tensor.strides}")
    if size == 0:
        return np.zeros(tensor.shape, flat.dtype)
    if last >= flat.size or size > flat.size:
        raise ValueError(f"a tensor of {size} elements reaches beyond its storage of {flat.size}")
    steps = [stride * flat.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat[offset:], tensor.shape, steps).copy()


def _read_safetensors(path):
    """Length of the header (uint64), header (JSON: name → dtype, shape, begin and end), bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(HEADER_LIMIT, size - 8):
            raise ValueError(f"its header would have {length} bytes")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            if dtype not in SAFETENSORS:
                raise ValueError(f"{name} is of type {dtype}; known: {', '.join(SAFETENSORS)}")
            if not 0 <= begin <= end <= size - 8 - length:
                raise ValueError(f"{name} reaches beyond the end of the file")
            file.seek(8 + length + begin)
            tensors[name] = _decode(file.read(end - begin), SAFETENSORS[dtype], "<").reshape(shape)
    return tensors


def _read_hdf5(file):
    """Keras' own layouts: Keras 3 (``layers/…/vars/0``, names as attributes) and Keras 1-2 (``layer_names``)."""
    root = file.get("model_weights", file)
    tensors = {}
    if "layer_names" in root.attrs:
        for layer in root.attrs["layer_names"]:
            group = root[layer]
            for weight in group.attrs["weight_names"]:
                variable = _text(weight).rsplit("/", 1)[-1].split(":")[0]
                tensors[f"{_text(layer)}/{variable}"] = np.asarray(group[weight])
        return tensors

    def collect(name, item):
        if isinstance(item, h5py.Dataset) and item.parent.name.endswith("/vars") and not name.startswith("optimizer"):
            layer = item.parent.parent
            named = item.parent.attrs.get("name", layer.attrs.get("name", layer.name.strip("/")))
            tensors[f"{_text(named)}/{name.rsplit('/', 1)[-1]}"] = np.asarray(item)

    root.visititems(collect)
    return tensors


def _text(name):
    return name.decode() if isinstance(name, bytes) else str(name)
