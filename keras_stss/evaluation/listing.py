"""Which clips a user means by files, folders and lists."""

import os
from pathlib import Path

from keras_stss.data.annotations import VIDEO_SUFFIXES, Clip, DataError, files, natural_key, storage
from keras_stss.data.pictures import FRAME_SUFFIXES

_NOTHING = "a folder without frames (*.jpg, *.jpeg, *.png), and without videos"
_TABLES = (".csv", ".tsv")


class Listing:
    """Clips in the order in which they are named; a place that is named again counts once.

    Attributes:
        clips: list of :class:`keras_stss.data.annotations.Clip`, whose ``id`` is the name that the user knows.
        faults: {clip.place: reason} of those that are known to be unreadable.
    """

    def __init__(self):
        self.clips, self.faults, self._places = [], {}, set()

    def add(self, name, root=""):
        """Adds a video file, a folder of frames, or all that lies in a folder.

        Below a folder, files with a video's suffix are clips, and folders that hold pictures but no clip; by name, with
        numbers in their order; names that begin with a dot are passed over.

        Args:
            name: path, from ``root`` on where that is given.
        """
        path = storage.join(root, name) if root and not storage.is_remote(name) else name
        try:
            is_folder = storage.is_folder(path)
        except (DataError, ValueError) as error:  # of an unknown file system; of a name with a zero byte
            self._put(Clip(name, path, 0, "video"), str(error))
            return
        if not is_folder:
            self._put(Clip(name, path, 0, "video"))
            return
        is_empty = True
        for found, kind, fault in _below(path):
            is_empty = False
            self._put(Clip(name + found[len(path) :], found, 0, kind), fault)
        if is_empty:
            self._put(Clip(name, path, 0, "frames"), _NOTHING)

    def add_list(self, path, root=""):
        """Adds what a file lists: a path a line, or a CSV with the column path and, where wanted, start and end.

        Args:
            path: the file; its suffix .csv or .tsv says that it is a table.
            root: folder that the paths in it start from (default: the working directory).

        Raises:
            DataError: where the list itself cannot be read.
        """
        path = storage.RemotePath(path) if storage.is_remote(path) else Path(path)
        if path.name.lower().endswith(_TABLES):
            header, body = files.table(path, ("path",), ("start", "end"))
            for line, fields in body:
                self._add_row(f"{path}:{line}", header, fields, root)
            return
        for _, name in files.read_lines(path):
            self.add(name, root)

    def _add_row(self, where, header, fields, root):
        row = dict(zip(header, fields))
        times = {name: row[name] for name in ("start", "end") if row.get(name)}
        if not times and row.get("path") and len(fields) == len(header):
            self.add(row["path"], root)
            return
        fault, seconds = _fault(row, times, len(fields), len(header))
        if fault:  # under the name of its line, as it may be there more than once
            self._put(Clip(where, where, 0, "video"), fault)
            return
        path = storage.join(root, row["path"]) if root and not storage.is_remote(row["path"]) else row["path"]
        self._put(Clip(row["path"], path, 0, "video", **seconds))

    def _put(self, clip, fault=None):
        place = storage.normal(clip.path), clip.start, clip.end
        if place in self._places:
            return
        self._places.add(place)
        self.clips.append(clip)
        if fault:
            self.faults[clip.place] = fault


def _fault(row, times, count, wanted):
    """(what is wrong with a row of a list, or None; its times in seconds)."""
    name = row.get("path")
    if count != wanted:
        return f"{count} fields, the header has {wanted}", {}
    if not name:
        return "no path", {}
    seconds = {key: files.seconds(text) for key, text in times.items()}
    received = ", ".join(f"{key}={text!r}" for key, text in times.items())
    if None in seconds.values():
        return f"{name!r}: start and end must be seconds from the start of the video. Received: {received}", {}
    if len(seconds) == 2 and seconds["end"] <= seconds["start"]:
        return f"{name!r}: end must be after start. Received: {received}", {}
    return None, seconds


def _below(folder, above=()):
    """(path, kind, what is wrong or None) of all clips in a folder and the folders in it."""
    try:
        own = _identity(folder)
        if own in above:  # a link that leads back up
            return
        entries = [entry for entry in storage.entries(folder) if not entry[0].startswith(".")]
    except (OSError, DataError) as error:
        yield folder, "frames", f"the folder cannot be read: {getattr(error, 'strerror', None) or error}"
        return
    inside = [entry for entry in entries if entry[2] or entry[0].lower().endswith(VIDEO_SUFFIXES)]
    is_empty = True
    for _, path, is_folder in sorted(inside, key=lambda entry: natural_key(entry[0])):
        for found in _below(path, (*above, own)) if is_folder else [(path, "video", None)]:
            is_empty = False
            yield found
    if is_empty and any(name.lower().endswith(FRAME_SUFFIXES) for name, _, _ in entries):
        yield folder, "frames", None


def _identity(folder):
    if storage.is_remote(folder):
        return folder
    status = os.stat(folder)
    return status.st_dev, status.st_ino
