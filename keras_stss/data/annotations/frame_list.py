"""The list files of the TSN and TSM code: ``path num_frames label`` a line."""

import logging

from keras_stss.data.annotations import files, storage
from keras_stss.data.annotations.data_set import VIDEO_SUFFIXES, Clip, DataSet
from keras_stss.data.annotations.layouts import not_there
from keras_stss.data.annotations.lists import IdList, warn_of_both

logger = logging.getLogger(__name__)

MAX_CLASSES = 100_000  # where no names are given: a label beyond is a column mistaken for it

MAX_ASKED = 50  # remote clips of a list that are looked for: a request each


def annotation_files(data, root):
    """(train, validation) paths."""
    names = {
        "train": ["train_videofolder.txt", "train.txt"],
        "validation": ["val_videofolder.txt", "validation_videofolder.txt", "val.txt", "validation.txt"],
    }
    return [files.find_file(data, root, part, there) for part, there in names.items()]


def read(data, root):
    """The :class:`DataSet` of the config's data section. A clip has the first ``num_frames`` of its frames."""
    list_paths, base = annotation_files(data, root), storage.place(root, data.videos or "")
    label_path = files.find_optional(data, root, "labels", ["category.txt", "categories.txt", "labels.txt"])
    labels, faults = files.read_labels(label_path) if label_path else None, files.Faults()
    lists = [_read_list(path, len(labels) if labels else None, label_path, faults) for path in list_paths]
    faults.raise_any()
    lists = [entries.checked() for entries in lists]
    warn_of_both(*lists)
    if labels is None:
        logger.warning("no names of the classes: as no label then names a side, data.flip mirrors clips of all of them")
        labels = [
            str(number) for number in range(1 + max(label for _, label in [*lists[0].values(), *lists[1].values()]))
        ]
    clips = [[_clip(base, name, *value) for name, value in entries.items()] for entries in lists]
    looked = [clip.path for part in clips for clip in (part[:MAX_ASKED] if storage.is_remote(part[0].path) else part)]
    if not any(map(storage.exists, looked)):
        raise not_there(data, "the folder of the clips (none of the listed ones is there)", [base])
    return DataSet(*clips, labels)


def _clip(base, name, count, label):
    kind = "video" if name.lower().endswith(VIDEO_SUFFIXES) else "frames"
    return Clip(name, str(storage.place(base, name)), label, kind, frames=(0, count))


def _read_list(path, classes, label_path, faults):
    entries = IdList(path, faults, "path")
    for line, text in files.read_lines(path):
        fields = text.rsplit(None, 2)  # the path may hold spaces
        count, label = (files.whole_number(field) for field in fields[1:]) if len(fields) == 3 else (None, None)
        if not count or label is None:
            wanted = "path num_frames label, the numbers whole and at least one frame"
            faults.add(path, line, f"wanted {wanted}. Received: {text[:80]!r}")
        elif files.leaves_root(fields[0]):
            faults.add(path, line, f"the path {fields[0]!r} leaves the folder of the data set")
        elif label >= (classes or MAX_CLASSES):
            where = f"{label_path} has {classes}, from 0" if classes else f"the largest is {MAX_CLASSES - 1}"
            entries.refuse(line, storage.normal(fields[0]), f"unknown label {label} ({fields[0]}): {where}")
        else:
            entries.add(line, storage.normal(fields[0]), (count, label))
    return entries
