"""Diving-48: JSON lists, a vocabulary of 48 dives, and a video each."""

from keras_stss.data.annotations import files
from keras_stss.data.annotations.data_set import Clip, DataSet
from keras_stss.data.annotations.lists import IdList, warn_of_both
from keras_stss.data.annotations.places import CONVERTED_SUFFIXES, find_clips


def annotation_files(data, root):
    """(labels, train, validation) paths."""
    names = {
        "labels": ["Diving48_vocab.json"],
        "train": ["Diving48_V2_train.json", "Diving48_train.json"],
        "validation": ["Diving48_V2_test.json", "Diving48_test.json"],
    }
    return [files.find_file(data, root, part, there) for part, there in names.items()]


def read(data, root):
    """The :class:`DataSet` of the config's data section."""
    label_path, *list_paths = annotation_files(data, root)
    labels, faults = _vocabulary(label_path), files.Faults()
    lists = [_read_list(path, len(labels), label_path, faults) for path in list_paths]
    faults.raise_any()
    lists = [entries.checked() for entries in lists]
    warn_of_both(*lists)
    places = [root / "rgb", root / "videos", root]
    paths = find_clips(data, places, [*lists[0], *lists[1]], CONVERTED_SUFFIXES)
    clips = [
        [Clip(clip_id, paths[clip_id], label, "video", frames=span) for clip_id, (label, span) in entries.items()]
        for entries in lists
    ]
    return DataSet(*clips, labels)


def _vocabulary(path):
    """Dives as texts: a list of [take-off, somersaults, twists, position] in the order of their indices."""
    entries, text = files.load_json(path, list, "a list of dives")
    faults, texts = files.Faults(), {}
    for number, (line, entry) in enumerate(zip(files.entry_lines(text, len(entries)), entries, strict=True)):
        parts = entry if isinstance(entry, list) else [entry]
        if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
            faults.add(path, line, f"a dive must be a text or a list of texts. Received: {str(entry)[:80]}")
        texts[number] = files.tidy(" ".join(map(str, parts)))
    return files.in_order(path, texts, faults)


def _read_list(path, classes, label_path, faults):
    entries, text = files.load_json(path, list, "a list of clips")
    taken = IdList(path, faults, "vid_name")
    for line, entry in zip(files.entry_lines(text, len(entries)), entries, strict=True):
        fields = entry if isinstance(entry, dict) else {}
        name, label = fields.get("vid_name"), _whole(fields.get("label"))
        first, after = _whole(fields.get("start_frame", 0)), _whole(fields.get("end_frame", 2**31))
        if not isinstance(name, str) or None in (label, first, after):
            wanted = "vid_name, label, start_frame and end_frame, whole numbers but the first"
            faults.add(path, line, f"an entry needs {wanted}. Received: {str(entry)[:80]}")
        elif not files.is_name(name):
            faults.add(path, line, f"the vid_name {name!r} is not a plain name")
        elif label >= classes:
            taken.refuse(line, name, f"unknown label {label} ({name}): {label_path} has {classes}, from 0")
        elif after <= first:
            taken.refuse(line, name, f"end_frame must be after start_frame ({name}). Received: {first}, {after}")
        else:
            taken.add(line, name, (label, (first, after)))
    return taken


def _whole(value):
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**31 else None
