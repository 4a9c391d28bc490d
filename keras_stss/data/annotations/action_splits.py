"""UCF-101 and HMDB-51: folders of classes, and three ways to split them into training and testing."""

import logging
import os
import re

from keras_stss.data.annotations import files, storage
from keras_stss.data.annotations.data_set import Clip, DataSet
from keras_stss.data.annotations.layouts import not_there
from keras_stss.data.annotations.lists import IdList, warn_of_both
from keras_stss.data.annotations.places import CONVERTED_SUFFIXES, find_clips

logger = logging.getLogger(__name__)

_AVI_FIRST = (".avi", *(suffix for suffix in CONVERTED_SUFFIXES if suffix != ".avi"))
_LIST_FOLDERS = ("ucfTrainTestlist", "", "labels", "annotations")
_HMDB_FOLDERS = ("testTrainMulti_7030_splits", "splits", "test_train_splits", "annotations", "")


def annotation_files(data, root):
    """UCF-101: (labels, train, validation) paths. HMDB-51: the paths of the fold, one a class."""
    fold = data.fold or 1
    if data.format == "ucf101":
        names = {"labels": "classInd.txt", "train": f"trainlist0{fold}.txt", "validation": f"testlist0{fold}.txt"}
        return [files.find_file(data, root, part, [name], _LIST_FOLDERS) for part, name in names.items()]
    folders = [storage.place(root, data.annotations or folder) for folder in _HMDB_FOLDERS]
    for folder in folders:
        found = sorted(folder.glob(f"?*_test_split{fold}.txt")) if folder.is_dir() else []
        if found:
            return found
    raise not_there(data, f"the lists of fold {fold}", [folder / f"*_test_split{fold}.txt" for folder in folders])


def read_ucf101(data, root):
    """The :class:`DataSet` of the config's data section."""
    label_path, *list_paths = annotation_files(data, root)
    labels, faults = _ucf_labels(label_path), files.Faults()
    index = {text: number for number, text in enumerate(labels)}
    lists = [_ucf_list(path, index, label_path, faults) for path in list_paths]
    return _data_set(data, root, lists, faults, labels, ["UCF-101", "UCF101", "videos", ""])


def _ucf_labels(path):
    texts, faults = {}, files.Faults()
    for line, text in files.read_lines(path):
        number, _, name = text.partition(" ")
        number = files.whole_number(number)
        if not number or not name.strip():
            faults.add(path, line, f"wanted an index from 1 and a class. Received: {text[:80]!r}")
        elif number - 1 in texts:
            faults.add(path, line, f"index {number} twice: {texts[number - 1]!r} and {name.strip()!r}")
        else:
            texts[number - 1] = name.strip()
    return files.in_order(path, texts, faults)


def _ucf_list(path, index, label_path, faults):
    entries = IdList(path, faults, "path")
    for line, text in files.read_lines(path):
        # Only the lists of training give an index, which counts from 1, behind the path.
        match = re.fullmatch(r"(.*\S)\s+(\d{1,9})", text)
        name, number = (match[1], int(match[2])) if match else (text, None)
        label, slash, file_name = name.partition("/")
        stem, suffix = os.path.splitext(file_name)
        if not slash or "/" in file_name or not _is_file_name(label) or not _is_file_name(stem) or not suffix:
            faults.add(path, line, f"wanted Class/video.avi and, in training, an index. Received: {text[:80]!r}")
        elif label not in index:
            entries.refuse(
                line, f"{label}/{stem}", f"unknown label {label!r}: not one of the {len(index)} in {label_path}"
            )
        elif number is not None and number != index[label] + 1:
            wrong = f"the index of {label} is {index[label] + 1} in {label_path}. Received: {number}"
            entries.refuse(line, f"{label}/{stem}", wrong)
        else:
            entries.add(line, f"{label}/{stem}", index[label])
    return entries


def read_hmdb51(data, root):
    """The :class:`DataSet` of the config's data section."""
    paths, faults = annotation_files(data, root), files.Faults()
    names = [path.name.rpartition("_test_split")[0] for path in paths]
    if len(names) != 51:
        logger.warning("%s has the lists of %d classes; HMDB-51 has 51", paths[0].parent, len(names))
    train, validation = IdList(paths[0].parent, faults), IdList(paths[0].parent, faults)
    for label, (path, name) in enumerate(zip(paths, names, strict=True)):
        entries = IdList(path, faults, "name")
        for line, text in files.read_lines(path):
            file_name, *use = text.rsplit(None, 1)
            stem, suffix = os.path.splitext(file_name)
            if use not in (["0"], ["1"], ["2"]) or not _is_file_name(stem) or not suffix:
                wanted = "a file name and 0, 1 (training) or 2 (testing)"
                faults.add(path, line, f"wanted {wanted}. Received: {text[:80]!r}")
            else:
                entries.add(line, f"{name}/{stem}", use[0])
        for clip_id, use in entries.entries.items():
            if use != "0":
                (train if use == "1" else validation).entries[clip_id] = label
    return _data_set(data, root, [train, validation], faults, names, ["hmdb51_org", "hmdb51", "videos", ""])


def _data_set(data, root, lists, faults, labels, places):
    faults.raise_any()
    lists = [entries.checked() for entries in lists]
    warn_of_both(*lists)
    paths = find_clips(data, [root / place for place in places], [*lists[0], *lists[1]], _AVI_FIRST)
    clips = [[Clip(clip_id, paths[clip_id], label, "video") for clip_id, label in entries.items()] for entries in lists]
    return DataSet(*clips, labels)


def _is_file_name(text):
    """One step of a path. HMDB-51 has names with all kinds of signs."""
    return text not in ("", ".", "..") and not set(text) & {"/", "\\", "\0"}
