"""Checkpoints of a run: one file each, written atomically, the last K kept."""

import json
import logging
import os
import re
import zipfile

import numpy as np

from keras_stss.training.distribute import components

log = logging.getLogger(__name__)


class Checkpoints:
    """The folder ``checkpoints/`` of a run.

    A file holds all variables (model, optimizer, seed generators) and the progress, a dictionary of plain values. It
    gets its name only once it is whole on the disk, so a killed run leaves no half checkpoint behind.

    Args:
        folder: ``pathlib.Path``.
        variables: Keras or TensorFlow variables, in an order that building the same config again gives again.
        keep: how many files to keep.
    """

    def __init__(self, folder, variables, keep):
        self.folder = folder
        self.variables = variables
        self.keep = keep
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, step, progress):
        """Writes ``step-<step>.npz`` and removes the oldest files beyond ``keep``."""
        arrays = {f"{number:04d}": np.asarray(components(v)[0]) for number, v in enumerate(self.variables)}
        path = self.folder / f"step-{step:08d}.npz"
        unfinished = path.with_suffix(".tmp")
        with open(unfinished, "wb") as file:
            np.savez(file, progress=np.frombuffer(json.dumps(progress).encode(), np.uint8), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        for old in self.files()[: -self.keep]:
            old.unlink()

    def files(self):
        """The checkpoints, oldest first."""
        return sorted(path for path in self.folder.iterdir() if re.fullmatch(r"step-\d+\.npz", path.name))

    def restore(self):
        """Sets the variables from the newest whole file.

        Returns:
            Its progress, or None where there is no checkpoint.
        """
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink()
        for path in reversed(self.files()):
            try:
                with np.load(path) as file:
                    progress = json.loads(file["progress"].tobytes())
                    arrays = [file[f"{number:04d}"] for number in range(len(self.variables))]
            except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
                log.warning("%s cannot be read (%s): going back to the checkpoint before it", path, error)
                os.replace(path, path.with_suffix(".damaged"))
                continue
            for variable, array in zip(self.variables, arrays, strict=True):
                for copy in components(variable):
                    copy.assign(array)
            return progress
        return None
