"""Annotations on disk -> lists of :class:`Clip`, one module a family of formats.

Opens no clip. A clip whose file is missing stays in its list and is found unreadable when it is decoded; whatever is
wrong with the annotations themselves comes back in one :class:`DataError`.
"""

import logging
import os

from keras_stss.config import DataConfig
from keras_stss.data.annotations import (
    action_splits,
    clip_table,
    diving48,
    finegym,
    frame_list,
    kinetics,
    packed,
    something,
    storage,
)
from keras_stss.data.annotations.data_set import VIDEO_SUFFIXES, Clip, DataError, DataSet
from keras_stss.data.annotations.files import SHOWN, natural_key
from keras_stss.data.annotations.layouts import not_there

__all__ = [
    "VIDEO_SUFFIXES",
    "Clip",
    "DataError",
    "DataSet",
    "check_there",
    "groups",
    "natural_key",
    "read_annotations",
    "read_table",
]

logger = logging.getLogger(__name__)

# (finds the annotation files, reads them) of each format.
_READERS = {
    "something_v1": (something.annotation_files, something.read),
    "something_v2": (something.annotation_files, something.read),
    "kinetics": (kinetics.annotation_files, kinetics.read),
    "diving48": (diving48.annotation_files, diving48.read),
    "gym99": (finegym.annotation_files, finegym.read),
    "gym288": (finegym.annotation_files, finegym.read),
    "ucf101": (action_splits.annotation_files, action_splits.read_ucf101),
    "hmdb51": (action_splits.annotation_files, action_splits.read_hmdb51),
    "frame_list": (frame_list.annotation_files, frame_list.read),
    "records": (packed.annotation_files, packed.read),
}


def read_annotations(data: DataConfig, holdout: str | None = None) -> DataSet:
    """Reads the annotations that ``data`` describes.

    Args:
        data: the config's data section.
        holdout: formats clips and records: the group to test on, in place of ``data.holdout``.

    Returns:
        A :class:`DataSet`; neither of its lists is empty.

    Raises:
        DataError: where the data set is not there, or naming file and line of what is wrong with it.
    """
    check_there(data)
    root = storage.place(data.root)
    if data.format in ("clips", "records"):
        read = clip_table.read if data.format == "clips" else packed.read
        data_set = read(data, root, holdout if holdout is not None else data.holdout)
    elif holdout is not None:
        raise DataError(f"holdout belongs to format 'clips'; {data.format} has its own validation list")
    else:
        _, read = _READERS[data.format]
        data_set = read(data, root)
    untrained = sorted(set(range(len(data_set.labels))) - {clip.label for clip in data_set.train})
    if untrained:
        names = ", ".join(repr(data_set.labels[index]) for index in untrained[:SHOWN])
        logger.warning("%d of %d labels have no training clip: %s", len(untrained), len(data_set.labels), names)
    return data_set


def read_table(path, data: DataConfig) -> tuple[list[Clip], list[str]]:
    """All clips of a CSV (path, label, if wanted start and end), whatever its splits, and their labels.

    Args:
        path: the CSV; relative paths in it are relative to its folder.
        data: where ``group_column`` is read.

    Raises:
        DataError: where there is no such file, or naming the lines of what is wrong with it.
    """
    folder, name = os.path.split(os.path.abspath(path))
    if not os.path.isfile(path):
        raise DataError(f"no such file: {path}")
    table = DataConfig(format="clips", root=folder, annotations=name, group_column=data.group_column)
    return clip_table.read_all(table, storage.place(folder))


def check_there(data: DataConfig):
    """Reads nothing, but raises :class:`DataError` where the folder or its annotation files are missing."""
    root = storage.place(data.root)
    if not root.is_dir():
        raise not_there(data, f"the folder {root} (data.root)", [storage.absolute(data.root)])
    find_files = clip_table.annotation_files if data.format == "clips" else _READERS[data.format][0]
    find_files(data, root)


def groups(data: DataConfig) -> list[str]:
    """The groups of a CSV of clips, or of a packed one, in natural order ("2" before "10").

    Raises:
        DataError: as :func:`read_annotations`, and where there is no group column.
    """
    if data.format == "records":
        return packed.groups(data)
    if data.format != "clips":
        raise DataError(f"groups belong to formats 'clips' and 'records'. Received: data.format={data.format!r}")
    return clip_table.groups(data, storage.place(data.root))
