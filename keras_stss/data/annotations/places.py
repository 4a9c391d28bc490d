"""Where the clips lie. Folders are listed once: a look-up on disk for each of 240,000 clips would be slow."""

import logging
import os

from keras_stss.data.annotations import storage
from keras_stss.data.annotations.data_set import VIDEO_SUFFIXES
from keras_stss.data.annotations.layouts import not_there

logger = logging.getLogger(__name__)

CONVERTED_SUFFIXES = (".mp4", ".webm", ".avi", ".mkv")  # what people make of a download
_DEEPEST = 3  # root/train/class/clip.mp4 is below three folders

_NOWHERE = "the folder of the clips (none of the listed ones is in any)"


def find_clips(data, places, names, suffixes):
    """Maps names to paths, in the first of some folders that has any of them.

    Args:
        data: the config's data section.
        places: folders; the one that ``data.videos`` names takes their place.
        names: paths from there without suffix, slashes between folders.
        suffixes: the first that is there is taken (("",): folders of frames).

    Returns:
        {name: path}; a clip that is not there has the path that it should have.
    """
    if data.videos is not None:
        places = [storage.place(places[-1], data.videos)]
    names = dict.fromkeys(names)
    parents = {name.rpartition("/")[0] for name in names}
    for place in places:
        there = {parent: _names_in(place / parent) for parent in parents}
        found = {}
        for name in names:
            parent, _, last = name.rpartition("/")
            suffix = next((suffix for suffix in suffixes if last + suffix in there[parent]), None)
            if suffix is not None:
                found[name] = os.path.join(place, name + suffix)
        if found:
            break
    else:
        raise not_there(data, _NOWHERE, places)
    _tell_missing(len(names) - len(found), len(names), place)
    return {name: found.get(name) or os.path.join(place, name + suffixes[0]) for name in names}


class VideoIndex:
    """The videos below ``data.videos`` (default: the root), by file name without suffix.

    Args:
        data: the config's data section.
        root: the data set's folder.
    """

    def __init__(self, data, root):
        self.data, self.base = data, storage.place(root, data.videos or "")
        self.paths = {}
        self._list(str(self.base), 0)

    def _list(self, folder, depth):
        try:
            entries = storage.entries(folder)
        except OSError:
            return
        for name, path, is_folder in entries:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in VIDEO_SUFFIXES and not is_folder and not name.startswith("."):
                self.paths.setdefault(stem, path)
        if depth < _DEEPEST:
            for _, path, is_folder in entries:
                if is_folder:
                    self._list(path, depth + 1)

    def find(self, wanted):
        """Paths of clips.

        Args:
            wanted: {clip: stems}, of which the first that is there is taken.

        Returns:
            {clip: (path, stem)}; a clip that is not there has the path that the last stem should have.
        """
        chosen = {clip: next((stem for stem in stems if stem in self.paths), None) for clip, stems in wanted.items()}
        missing = sum(stem is None for stem in chosen.values())
        if missing == len(chosen):
            raise not_there(self.data, _NOWHERE, [f"{self.base} and the folders below it"])
        _tell_missing(missing, len(chosen), self.base)
        return {
            clip: (os.path.join(self.base, f"{wanted[clip][-1]}.mp4"), wanted[clip][-1]) if stem is None
            else (self.paths[stem], stem)
            for clip, stem in chosen.items()
        }  # fmt: skip


def _names_in(folder):
    try:
        return set(storage.names(folder))
    except OSError:
        return set()


def _tell_missing(missing, count, place):
    if missing:
        logger.warning("%d of %d clips have no file in %s", missing, count, place)
