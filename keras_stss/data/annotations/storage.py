"""Files on disk, or behind one of TensorFlow's file systems (gs://, s3://, ...)."""

import contextlib
import os

from keras_stss.data.annotations.data_set import DataError


def is_remote(path):
    """Whether the path names a file system, as in gs://bucket/folder."""
    return "://" in str(path)


def join(folder, name):
    """The path of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def absolute(path):
    """The path from the root on; remote ones are that already."""
    return path if is_remote(path) else os.path.abspath(path)


def read_bytes(path):
    """The content of a file.

    Raises:
        OSError: where it cannot be read.
        DataError: where there is no such file system here.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            return file.read()
    with _told(path) as gfile, gfile.GFile(path, "rb") as file:
        return file.read()


def read_ranges(path, ranges):
    """Parts of a file, opened once. A part beyond the end comes back short.

    Args:
        path: the file.
        ranges: (offset, size) of each part, best in rising order.

    Raises:
        OSError, DataError: as :func:`read_bytes`.
    """
    if is_remote(path):
        with _told(path) as gfile, gfile.GFile(path, "rb") as file:
            length = file.size()
            return [_read_at(file, min(offset, length), size) for offset, size in ranges]
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [os.pread(file, size, offset) for offset, size in ranges]
    finally:
        os.close(file)


def _read_at(file, offset, size):
    file.seek(offset)
    return file.read(size)


@contextlib.contextmanager
def _told(path):
    """Gives TensorFlow's file module; its errors become those of files on disk."""
    import tensorflow as tf  # here, since files on disk need none of it

    try:
        yield tf.io.gfile
    except tf.errors.UnimplementedError:
        scheme = path.partition("://")[0]
        raise DataError(
            f"{path} cannot be read: this TensorFlow has no file system for {scheme}:// (gs:// is built in; packages "
            "such as tensorflow-io add others). Copy the folder to a disk, or mount it"
        ) from None
    except tf.errors.NotFoundError:
        raise FileNotFoundError(2, "No such file", path) from None
    except tf.errors.OpError as error:
        raise OSError(5, (error.message or type(error).__name__).splitlines()[0], path) from None
