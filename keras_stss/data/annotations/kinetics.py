"""Kinetics-400: CSV lists; videos that are cut to the annotated ten seconds already."""

from keras_stss.data.annotations import files
from keras_stss.data.annotations.data_set import Clip, DataSet
from keras_stss.data.annotations.lists import IdList, warn_of_both
from keras_stss.data.annotations.places import VideoIndex

_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validate", "validation", "test", "testing"),
}
_PREFIXES = ("", "kinetics400_", "kinetics-400_", "kinetics_400_", "k400_")


def annotation_files(data, root):
    """(train, validation) paths."""
    return [
        files.find_file(data, root, part, [f"{prefix}{name}.csv" for prefix in _PREFIXES for name in names])
        for part, names in (("train", ("train",)), ("validation", ("val", "validate", "validation")))
    ]


def read(data, root):
    """The :class:`DataSet` of the config's data section.

    Labels stand in the order of the alphabet, as the 400 classes do everywhere, or in that of ``data.labels``.
    """
    paths = annotation_files(data, root)
    label_path = files.find_optional(data, root, "labels", [])
    labels = files.read_labels(label_path) if label_path else None
    faults = files.Faults()
    lists = [
        _read_list(path, part, paths[0] == paths[1], labels and frozenset(labels), faults)
        for path, part in zip(paths, _SPLITS, strict=True)
    ]
    faults.raise_any()
    lists = [entries.checked() for entries in lists]
    warn_of_both(*lists)
    if labels is None:
        labels = sorted({label for entries in lists for label in entries.values()})
    index = {text: number for number, text in enumerate(labels)}
    found = VideoIndex(data, root).find({clip_id: [clip_id] for entries in lists for clip_id in entries})
    clips = [
        [Clip(clip_id, found[clip_id][0], index[label], "video") for clip_id, label in entries.items()]
        for entries in lists
    ]
    return DataSet(*clips, labels)


def _read_list(path, part, is_shared, labels, faults):
    header, body = files.table(path, _COLUMNS, ("split",))
    entries = IdList(path, faults)
    for line, row in files.fields_of(path, header, body, faults):
        split = row.get("split", "").lower()
        if is_shared and split in sum((words for name, words in _SPLITS.items() if name != part), ()):
            continue  # a line of the other list, which is in the same file
        label, start, end = files.tidy(row["label"]), files.seconds(row["time_start"]), files.seconds(row["time_end"])
        if not files.is_name(row["youtube_id"]):
            faults.add(path, line, f"the youtube_id {row['youtube_id']!r} is not a plain name")
        elif start is None or end is None or end <= start:
            times = f"time_start={row['time_start']!r}, time_end={row['time_end']!r}"
            faults.add(path, line, f"the times must be seconds, the second after the first. Received: {times}")
        elif not label:
            faults.add(path, line, "empty label")
        elif labels is not None and label not in labels:
            faults.add(path, line, f"unknown label {label!r}: not one of the {len(labels)} in data.labels")
        elif split not in _SPLITS[part] and (split or is_shared):
            faults.add(path, line, f"split must be {' or '.join(_SPLITS[part])} in this list. Received: {split!r}")
        else:
            entries.add(line, f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}", label)
    return entries
