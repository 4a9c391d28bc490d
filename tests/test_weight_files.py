"""Readers of weight files: formats, damage, and files that would run code."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import originals
import pytest

from keras_stss.config import ConfigError
from keras_stss.models.weights.tensor_files import read_tensors

GOLDEN = Path(__file__).resolve().parent / "golden"


def expected_tensors():
    grid = np.arange(24, dtype=np.float32).reshape(4, 6)
    return {
        "float": grid / 7,
        "transposed": grid.T,
        "slice": grid[1:3, 2:5],
        "half": (grid / 7).astype(np.float16),
        "bfloat": ((((grid / 7).view(np.uint32) + 0x8000) >> 16) << 16).view(np.float32),
        "double": (grid / 7).astype(np.float64),
        "long": np.array(-3),
        "int": np.array([1, 2], np.int32),
        "byte": np.array([255], np.uint8),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": grid[0],
    }


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_pytorch_file(form):
    """A checkpoint written by PyTorch 2.13 with optimizer, arguments and NumPy numbers beside the state dict."""
    kind, tensors = read_tensors(GOLDEN / f"checkpoint_{form}.pth")
    assert kind == "torch"
    assert tensors.keys() == expected_tensors().keys()
    for name, expected in expected_tensors().items():
        assert tensors[name].dtype == expected.dtype, name
        np.testing.assert_array_equal(tensors[name], expected, err_msg=name)


@pytest.mark.parametrize("legacy", [False, True])
def test_pytorch_file_written_now(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    state = originals.seeded(dict(list(originals.checkpoint_names("tsm_r18").items())[:30]))
    tensors = {name: torch.from_numpy(np.array(value)).bfloat16() for name, value in state.items()}
    torch.save({"model": tensors}, tmp_path / "now.pth", _use_new_zipfile_serialization=not legacy)
    _, found = read_tensors(tmp_path / "now.pth")
    assert list(found) == list(state)
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value.float().numpy())


def test_whole_pytorch_model_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 3), tmp_path / "whole.pth")
    with pytest.raises(ConfigError, match=r"torch\.nn\.modules\.linear\.Linear.*model\.state_dict\(\)"):
        read_tensors(tmp_path / "whole.pth")
    torch.jit.script(torch.nn.Linear(2, 3)).save(tmp_path / "program.pt")
    with pytest.raises(ConfigError, match="TorchScript program"):
        read_tensors(tmp_path / "program.pt")


def test_safetensors(tmp_path):
    tensors = expected_tensors()
    tensors = {name: np.ascontiguousarray(tensors[name]).reshape(tensors[name].shape) for name in tensors}
    del tensors["byte"], tensors["bfloat"]
    kind, found = read_tensors(originals.write_safetensors(tmp_path / "a.safetensors", tensors))
    assert kind == "torch"
    for name, expected in tensors.items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
        assert found[name].dtype == expected.dtype


def test_safetensors_by_its_own_package(tmp_path):
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"a": torch.arange(6.0).reshape(2, 3).bfloat16() / 7}, tmp_path / "a.safetensors")
    expected = (torch.arange(6.0).reshape(2, 3).bfloat16() / 7).float().numpy()
    np.testing.assert_array_equal(read_tensors(tmp_path / "a.safetensors")[1]["a"], expected)


def safetensors_bytes(entry):
    text = json.dumps({"a": entry}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (safetensors_bytes({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}), "beyond the end"),
        (safetensors_bytes({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}), "reshape"),
        (safetensors_bytes({"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}), "type F8_E4M3"),
        (struct.pack("<Q", 10**9) + b"{}" + bytes(20), "header would have 1000000000 bytes"),
        (b"", "is damaged"),
    ],
)
def test_damaged_safetensors(tmp_path, content, says):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        read_tensors(path)


def test_damaged_files(tmp_path):
    for form in ("zip", "legacy"):
        content = (GOLDEN / f"checkpoint_{form}.pth").read_bytes()
        for share in (0.3, 0.7, 0.95):
            path = tmp_path / "cut.pth"
            path.write_bytes(content[: int(share * len(content))])
            with pytest.raises(ConfigError, match=r"cut\.pth is damaged"):
                read_tensors(path)
    with pytest.raises(ConfigError, match=r"no weight file at .*nowhere"):
        read_tensors(tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("not weights at all, only text")
    with pytest.raises(ConfigError, match="no PyTorch, safetensors, Keras or Flax file"):
        read_tensors(tmp_path / "text.pth")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(ConfigError, match="neither PyTorch's nor Keras'"):
        read_tensors(tmp_path / "other.zip")


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def archive_of(path, content, **records):
    """A file laid out as PyTorch's, around the pickle ``content``."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for name, data in records.items():
            archive.writestr(f"archive/data/{name}", data)
    return path


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [os.system, eval, getattr, os.makedirs], ids=lambda f: f.__name__)
def test_malicious_pickle(tmp_path, protocol, function):
    """A file that would run a command, and one that would make a folder, are refused unread, in both formats."""
    trap = tmp_path / "trap"
    command = {os.system: f"touch {trap}", os.makedirs: str(trap)}.get(function, "1")
    content = pickle.dumps({"state_dict": Call(function, command)}, protocol=protocol)
    legacy = b"".join(
        pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    (tmp_path / "bad.pth").write_bytes(legacy + content)
    for path in (tmp_path / "bad.pth", archive_of(tmp_path / "bad.zip", content)):
        with pytest.raises(ConfigError, match=rf"holds \w+\.{function.__name__}, and reading that would run code"):
            read_tensors(path)
    assert not trap.exists()


def tensor_pickle(build):
    """A pickle of {"a": tensor} whose tensor is rebuilt by the opcodes ``build``."""
    return b"\x80\x02}X\x01\x00\x00\x00a" + build + b"s."


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (REBUILD + b"(" + STORAGE + b"K\x00K\x05\x85K\x01\x85\x89}tR", "beyond its storage"),
        (REBUILD + b"(" + STORAGE + b"K\x02K\x03\x85K\x01\x85\x89}tR", "beyond its storage"),
        (REBUILD + b"(" + STORAGE + b"K\x00J\xff\xff\xff\x7f\x85K\x00\x85\x89}tR", "beyond its storage"),
        (REBUILD + b"(" + STORAGE + b"K\x03K\x02\x85J\xff\xff\xff\xff\x85\x89}tR", "strides"),
        (REBUILD + b"(K\x01K\x00K\x01\x85K\x01\x85\x89}tR", "without a storage"),
        (REBUILD + b"N}X\x08\x00\x00\x00__code__K\x01s\x86b", "changes a function"),
        (b"ctorch._utils\n_rebuild_qtensor\n(tR", "unknown kind"),
    ],
    ids=["too long", "offset", "stride 0", "negative stride", "no storage", "changed function", "quantized"],
)
def test_tensor_that_cannot_be(tmp_path, build, says):
    """Strides and offsets come from the file: they never reach outside of it."""
    good = tensor_pickle(REBUILD + b"(" + STORAGE + b"K\x01K\x03\x85K\x01\x85\x89}tR")
    data = {"0": np.arange(4, dtype="<f4").tobytes()}
    np.testing.assert_array_equal(read_tensors(archive_of(tmp_path / "good.pth", good, **data))[1]["a"], [1, 2, 3])
    with pytest.raises(ConfigError, match=says):
        read_tensors(archive_of(tmp_path / "bad.pth", tensor_pickle(build), **data))


def test_checkpoint_without_weights(tmp_path):
    with pytest.raises(ConfigError, match=r"no state dict.*keys: epoch, arch"):
        read_tensors(archive_of(tmp_path / "a.pth", pickle.dumps({"epoch": 3, "arch": "TSM"})))


# Pickled arrays.


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays(tmp_path, protocol):
    """Every protocol, type, byte order and memory order that NumPy writes."""
    grid = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {
        "plain": grid,
        "columns": np.asfortranarray(grid / 7),
        "slice": grid[1:3, 2:5],
        "half": grid.astype(np.float16),
        "big": grid.astype(">f8"),
        "count": np.array(3),
        "bytes": np.array([255], np.uint8),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps({"params": {"layer": arrays}, "step": 7}, protocol=protocol))
    kind, tensors = read_tensors(path)
    assert kind == "flax"
    assert tensors.keys() == {f"params/layer/{name}" for name in arrays}
    for name, expected in arrays.items():
        found = tensors[f"params/layer/{name}"]
        assert found.dtype == expected.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(found, expected, err_msg=name)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": Evil()}, "holds posix.mkdir, and reading that would run code"),
        ({"a": np.array([Evil()], object)}, "is damaged|would run code"),
        ({"a": np.array(["text"])}, "an array of an unknown kind"),
        ({"a": 1}, "no dictionary of arrays"),
        ([1, 2], "no dictionary of arrays"),
    ],
    ids=["code", "objects", "text", "numbers", "list"],
)
def test_pickles_that_are_refused(tmp_path, monkeypatch, content, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(ConfigError, match=says):
        read_tensors(tmp_path / "a.ckpt")
    assert not (tmp_path / "evil").exists()


def test_damaged_pickle(tmp_path):
    whole = pickle.dumps({"a": np.zeros((3, 4), np.float32)}, protocol=4)
    (tmp_path / "a.ckpt").write_bytes(whole[:-20])
    with pytest.raises(ConfigError, match="is damaged"):
        read_tensors(tmp_path / "a.ckpt")
