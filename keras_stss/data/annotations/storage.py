"""Files on disk, or behind one of TensorFlow's file systems (gs://, ram://, ...).

Functions take either kind of path as text. Nothing is asked of a remote file system that reading itself tells.
"""

import contextlib
import fnmatch
import os
import re
from dataclasses import dataclass
from pathlib import Path

from keras_stss.data.annotations.data_set import DataError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_remote(path):
    """Whether the path names a file system, as in gs://bucket/folder."""
    return _SCHEME.match(os.fspath(path)) is not None


def join(folder, name):
    """The path of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def absolute(path):
    """The path from the root on; remote ones are that already."""
    return path if is_remote(path) else os.path.abspath(path)


def normal(path):
    """The path without steps that lead nowhere; remote ones as they are."""
    return path if is_remote(path) else os.path.normpath(path)


def place(folder, name=""):
    """A name in a folder as :class:`pathlib.Path` or :class:`RemotePath`; an absolute or remote name stands alone."""
    if is_remote(name):
        return RemotePath(name)
    return (RemotePath(os.fspath(folder)) if is_remote(folder) else Path(folder)) / name


@dataclass(frozen=True, order=True)
class RemotePath:
    """A remote path with those methods of :class:`pathlib.Path` that the readers of annotations use.

    Args:
        text: as in gs://bucket/folder.

    Raises:
        DataError: where there is no such file system here.
    """

    text: str

    def __post_init__(self):
        _file_module(self.text)

    def __truediv__(self, name):
        if os.path.isabs(name):
            return Path(name)
        # Stores of objects know no steps such as ./ or ../ in a name.
        return RemotePath(join(self.text, os.path.normpath(name))) if name else self

    def __str__(self):
        return self.text

    def __fspath__(self):
        return self.text

    @property
    def name(self):
        return self.text.rstrip("/").rpartition("/")[2]

    @property
    def parent(self):
        return RemotePath(self.text.rstrip("/").rpartition("/")[0])

    def is_dir(self):
        return is_folder(self.text)

    def is_file(self):
        status = _status(self.text)
        return status is not None and not status.is_directory

    def read_bytes(self):
        return read_bytes(self.text)

    def glob(self, pattern):
        return [self / name for name in fnmatch.filter(names(self.text), pattern)]


@contextlib.contextmanager
def opened(path):
    """A file to read bytes from.

    Raises:
        OSError: where it cannot be read.
        DataError: where there is no such file system here.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            yield file
    else:
        with _told(path) as gfile, gfile.GFile(path, "rb") as file:
            yield file


def read_bytes(path, most=None):
    """The content of a file; of one that is larger than ``most`` bytes, None.

    Raises:
        OSError, DataError: as :func:`opened`.
    """
    with opened(path) as file:
        if most is None:
            return file.read()
        content = file.read(most + 1)
        return content if len(content) <= most else None


def read_ranges(path, ranges):
    """Parts of a file, opened once. A part beyond the end comes back short.

    Args:
        path: the file.
        ranges: (offset, size) of each part, best in rising order.

    Raises:
        OSError, DataError: as :func:`opened`.
    """
    if is_remote(path):
        with opened(path) as file:
            length = file.size()
            return [_read_at(file, min(offset, length), size) for offset, size in ranges]
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [os.pread(file, size, offset) for offset, size in ranges]
    finally:
        os.close(file)


def size(path):
    """The length of a file in bytes.

    Raises:
        OSError, DataError: as :func:`opened`.
    """
    if not is_remote(path):
        return os.path.getsize(path)
    with _told(path) as gfile:
        return gfile.stat(path).length


def exists(path):
    """Whether there is such a file or folder."""
    return _status(path) is not None if is_remote(path) else os.path.exists(path)


def is_folder(path):
    """Whether there is such a folder."""
    if not is_remote(path):
        return os.path.isdir(path)
    status = _status(path)
    return status is not None and status.is_directory


def names(folder):
    """The names in a folder, in any order.

    Raises:
        OSError, DataError: as :func:`opened`.
    """
    if not is_remote(folder):
        return os.listdir(folder)
    return [name.rstrip("/") for name in _listed(folder)]


def entries(folder):
    """(name, path, whether it is a folder) of all that lies in a folder, by name.

    Of remote ones, only a name without a suffix is looked at: a request for each of 240,000 videos would take hours.

    Raises:
        OSError, DataError: as :func:`opened`.
    """
    if not is_remote(folder):
        with os.scandir(folder) as found:
            return sorted((entry.name, entry.path, entry.is_dir()) for entry in found)
    found = []
    for listed in sorted(_listed(folder)):
        name = listed.rstrip("/")
        path = join(folder, name)
        found.append((name, path, listed != name or ("." not in name and is_folder(path))))
    return found


def _listed(folder):
    """The names in a remote folder; some file systems put a slash behind those of folders."""
    with _told(folder) as gfile:
        return [name for name in gfile.listdir(folder) if name.strip("/")]


def _status(path):
    """What the file system says of a remote path; None where nothing is there."""
    try:
        with _told(path) as gfile:
            return gfile.stat(path)
    except FileNotFoundError:
        return None


def _read_at(file, offset, size):
    file.seek(offset)
    return file.read(size)


@contextlib.contextmanager
def _told(path):
    """Gives TensorFlow's file module; its errors become those of files on disk."""
    gfile = _file_module(path)
    from tensorflow import errors

    try:
        yield gfile
    except errors.NotFoundError:
        raise FileNotFoundError(2, "No such file", path) from None
    except errors.OpError as error:
        raise OSError(5, (error.message or type(error).__name__).splitlines()[0], path) from None


def _file_module(path):
    """TensorFlow's file module, where it knows the path's file system: its functions tell of that in different ways."""
    from tensorflow.io import gfile  # here, since files on disk need none of it

    scheme = _SCHEME.match(os.fspath(path))[1]
    if scheme not in gfile.get_registered_schemes():
        raise DataError(
            f"{path} cannot be read: this TensorFlow has no file system for {scheme}:// (gs:// is built in; packages "
            "such as tensorflow-io add others). Copy the folder to a disk, or mount it"
        )
    return gfile
