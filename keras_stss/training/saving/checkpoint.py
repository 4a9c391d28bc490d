"""Checkpoints of a run: one file each, checksummed, written atomically, the last K kept."""

import hashlib
import json
import logging
import os
import re
import zipfile

import numpy as np
import tensorflow as tf

from keras_stss.training.saving.files import DiskFull, remove_unfinished, replacing
from keras_stss.training.workers.distribute import components

log = logging.getLogger(__name__)

#: A file ends with the archive's comment: this mark, then the SHA-256 of the file with zeros in the place of it.
_MARK, _DIGITS = b"sha256:", 64
_END = b"PK\5\6"  # of an archive's last record, which has 22 bytes where there is no comment


class CheckpointError(RuntimeError):
    """No checkpoint of a run can be restored. Its text is meant for the user."""


class Checkpoints:
    """The folder ``checkpoints/`` of a run.

    A file holds all variables (model, optimizer, seed generators) and the progress, a dictionary of plain values. It is
    a NumPy archive that anyone can read with ``np.load``.

    Args:
        folder: ``pathlib.Path``.
        variables: Keras or TensorFlow variables, in an order that building the same config again gives again.
        keep: how many files to keep.
    """

    def __init__(self, folder, variables, keep):
        self.folder = folder
        self.variables = variables
        self.keep = keep

    def save(self, step, progress):
        """Writes ``step-<step>.npz``, then removes the oldest files beyond ``keep``.

        Returns:
            Its path.

        Raises:
            DiskFull, CheckpointError: where there is no room, or a variable is not finite; the earlier files stay.
        """
        self.folder.mkdir(parents=True, exist_ok=True)  # here: only the chief of several workers has a folder
        path = self.folder / f"step-{step:08d}.npz"
        text = np.frombuffer(json.dumps(progress).encode(), np.uint8)
        try:
            with replacing(path) as unfinished:
                _write(unfinished, text, map(_finite, self.variables))
        except (DiskFull, CheckpointError) as error:
            files = self.files()
            last = f"it goes on from {files[-1]}" if files else "no checkpoint was written before"
            raise type(error)(f"{error}: {last}") from error
        for old in self.files()[: -self.keep]:
            old.unlink()
        return path

    def files(self):
        """The checkpoints, oldest first."""
        return sorted(
            (path for path in self.folder.glob("step-*.npz") if re.fullmatch(r"step-\d+\.npz", path.name)),
            key=lambda path: int(path.stem[5:]),
        )

    def restore(self):
        """Sets the variables from the newest whole file; damaged ones newer than it are renamed to ``….damaged``.

        Returns:
            Its progress, or None where there is no checkpoint.

        Raises:
            CheckpointError: where there are files, none of which can be restored. No variable and no file has changed.
        """
        if not self.folder.is_dir():
            return None
        remove_unfinished(self.folder)
        faults = {}
        for path in reversed(self.files()):
            try:
                progress, arrays = self._read(path)
            except PermissionError:
                raise
            except Exception as error:  # damaged bytes make the readers of archives and arrays fail in any way
                faults[path] = f"{error or type(error).__name__}"
                continue
            break
        else:
            if faults:
                told = "; ".join(f"{path.name}: {reason}" for path, reason in faults.items())
                raise CheckpointError(
                    f"no checkpoint in {self.folder} can be restored ({told}). Put a whole copy of one there, or begin "
                    "anew in another folder with train.run=…"
                )
            return None
        for damaged, reason in faults.items():
            aside = damaged.with_suffix(".damaged")
            log.warning("%s cannot be restored: %s. It is now %s; going back to %s", damaged, reason, aside.name, path)
            os.replace(damaged, aside)
        for variable, array in zip(self.variables, arrays, strict=True):
            for copy in components(variable):
                copy.assign(array)
        return progress

    def _read(self, path):
        """Progress and arrays of a file that is whole and fits the variables; any exception where it does not."""
        _verify(path)
        names = [f"{number:04d}" for number in range(len(self.variables))]
        with np.load(path, allow_pickle=False) as file:
            if set(file.files) != {"progress", *names}:
                raise ValueError(f"it holds {len(file.files)} arrays, wanted are {len(names) + 1}")
            progress = json.loads(file["progress"].tobytes())
            arrays = [file[name] for name in names]
        for name, variable, array in zip(names, self.variables, arrays, strict=True):
            own = components(variable)[0]
            shape, dtype = tuple(own.shape), np.dtype(tf.as_dtype(own.dtype).as_numpy_dtype)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"array {name} is {array.dtype} {array.shape}, wanted is {dtype} {shape}, {variable.name}"
                )
        return progress, arrays


def _finite(variable):
    """The variable's array; a checkpoint that holds what is no number would be none to go back to."""
    array = np.asarray(components(variable)[0])
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        name = getattr(variable, "path", variable.name)
        raise CheckpointError(
            f"{name} holds values that are not finite, so no checkpoint is written of this step. The same command "
            "tries it again"
        )
    return array


class _Hashed:
    """A file to write from front to back, which takes the SHA-256 on the way."""

    def __init__(self, file):
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data):
        self.hash.update(data)
        return self.file.write(data)

    def flush(self):
        self.file.flush()


def _write(path, progress, arrays):
    with open(path, "wb") as file:
        hashed = _Hashed(file)
        with zipfile.ZipFile(hashed, "w") as archive:
            archive.comment = _MARK + b"0" * _DIGITS
            _write_array(archive, "progress", progress)
            for number, array in enumerate(arrays):
                _write_array(archive, f"{number:04d}", array)
        file.seek(-_DIGITS, os.SEEK_END)
        file.write(hashed.hash.hexdigest().encode())


def _write_array(archive, name, array):
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def _verify(path):
    """Raises ValueError where a file is not what was written. Earlier versions wrote no SHA-256, only CRC-32s."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(size - _DIGITS - len(_MARK), 0))
        tail = file.read()
        if not tail.startswith(_MARK) or len(tail) != _DIGITS + len(_MARK):
            if tail[-22:-18] == _END and tail.endswith(b"\0\0"):
                return
            raise ValueError("the file is empty" if not size else "the file is cut off, or no checkpoint")
        file.seek(0)
        found, left = hashlib.sha256(), size - _DIGITS
        while left and (block := file.read(min(left, 2**20))):
            found.update(block)
            left -= len(block)
    found.update(b"0" * _DIGITS)
    if found.hexdigest().encode() != tail[-_DIGITS:]:
        raise ValueError("its SHA-256 is not the one that was written")
