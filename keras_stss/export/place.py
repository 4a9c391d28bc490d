"""Where an export is written: whole and checked under its name, or not at all."""

import contextlib
import os
import shutil
from pathlib import Path

from keras_stss.config import ConfigError

#: What a folder with a file of this name is.
KINDS = {"saved_model.pb": "SavedModel", "export.json": "export (export.json)"}


@contextlib.contextmanager
def writing(folder, force, marker):
    """Gives a folder to write into, beside the target, which takes the target's place once the block has ended well.

    Args:
        folder: the target; its parents are made.
        force: replace an earlier export that is there.
        marker: name of a file that every export of the kind holds.

    Raises:
        ConfigError: where the folder cannot be used.
    """
    folder = Path(os.path.abspath(folder))
    check_target(folder, force, marker)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder.parent} cannot be made: {error.strerror}") from None
    # Beside the target, so that renaming is atomic; TensorFlow Serving passes over names that are no number.
    unfinished = folder.with_name(f".{folder.name}.unfinished-{os.getpid()}")
    try:
        yield unfinished
        _put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def size(path):
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(each.stat().st_size for each in files if each.is_file())


def check_target(folder, force, marker):
    """Raises ConfigError for a folder that :func:`writing` would not take."""
    folder = Path(os.path.abspath(folder))
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder} exists and is no folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not force:
        raise ConfigError(f"{folder} is not empty: name another folder, or export with force to replace it")
    if not (folder / marker).is_file():
        # force replaces an earlier export; it is no licence to delete whatever a mistyped path names.
        raise ConfigError(
            f"{folder} holds files but no {KINDS[marker]}, so force does not replace it: name another folder"
        )


def _put_in_place(unfinished, folder):
    if not folder.is_dir():
        os.replace(unfinished, folder)
        return
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    os.replace(folder, old)
    os.replace(unfinished, folder)
    shutil.rmtree(old)
