"""Files that are the old one or the whole new one: after a kill, a power cut and on a full disk."""

import contextlib
import errno
import os
import shutil

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # some network file systems


class DiskFull(OSError):
    """No space is left for a file, or no quota. Its text is meant for the user."""


@contextlib.contextmanager
def replacing(path):
    """Gives the path of a file to write, which takes the place of ``path`` once the block has ended well.

    The new file is on the disk before it gets its name, and the name before this returns. Where the block fails, the
    file is removed and ``path`` stays as it was.

    Args:
        path: ``pathlib.Path``; its folder exists.

    Raises:
        DiskFull: where the disk or quota is full.
    """
    unfinished = path.with_name(f"unfinished-{path.name}")
    try:
        yield unfinished
        _sync(unfinished)
        os.replace(unfinished, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        if reason := _full(error):
            raise DiskFull(_no_room(path, reason)) from error
        raise
    try:
        _sync(path.parent)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def write_atomically(path, text):
    """Writes a text file that is either the old one or the whole new one."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def is_unfinished(path):
    """Whether a process that was killed left this behind half written."""
    return path.is_file() and (path.name.startswith("unfinished") or path.name.endswith((".tmp", ".tmp.npz")))


def remove_unfinished(folder):
    """Removes what killed processes left behind half written."""
    for path in filter(is_unfinished, folder.iterdir()):
        path.unlink(missing_ok=True)


def _sync(path):
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _full(error):
    """Why there is no room, where that is the cause of an error, or None; libraries wrap it in errors of their own."""
    while error is not None:
        for number in _FULL:
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


def _no_room(path, reason):
    free = shutil.disk_usage(path.parent).free / 1e6
    return (
        f"{path} cannot be written: {reason} ({free:,.1f} MB free there). What was written before it is whole. "
        "Make room, then give the same command again"
    )
