"""A CSV of one's own clips: path, label, and if wanted split, start, end and a group."""

import os
import random
from collections import Counter

from keras_stss.data.annotations import files, storage
from keras_stss.data.annotations.data_set import VIDEO_SUFFIXES, Clip, DataError, DataSet
from keras_stss.data.annotations.layouts import not_there

SPLIT_SEED = 0  # fixed: every run on a file of clips must hold out the same ones

_SPLITS = dict.fromkeys(("train", "training"), "train")
_SPLITS |= dict.fromkeys(("val", "valid", "validation", "test", "testing"), "validation")


def annotation_files(data, root):
    """The CSV's path."""
    path = storage.place(root, data.annotations)
    if not path.is_file():
        raise not_there(data, "the file of data.annotations", [path])
    return [path]


def read(data, root, holdout):
    """The :class:`DataSet` of the config's data section, where ``holdout`` (a group or None) is tested on."""
    clips = _ClipTable(data, root)
    labels = clips.labels()
    if holdout is not None:
        tested = _held_out(clips, holdout)
    elif clips.has_splits:
        tested = [_SPLITS[row["split"].lower()] == "validation" for row in clips.rows]
    else:
        tested = _random_split(clips, data.validation_share)
    index = {text: number for number, text in enumerate(labels)}
    lists = {False: [], True: []}
    for row, is_tested in zip(clips.rows, tested, strict=True):
        lists[is_tested].append(clips.clip(row, index))
    for is_tested, name in ((False, "training"), (True, "validation")):
        if not lists[is_tested]:
            raise DataError(f"{clips.path}: no clip is left for {name} ({len(clips.rows)} clips in all)")
    return DataSet(lists[False], lists[True], labels)


def read_all(data, root):
    """(all clips of the CSV, whatever their split, and the labels)"""
    clips = _ClipTable(data, root)
    labels = clips.labels()
    index = {text: number for number, text in enumerate(labels)}
    return [clips.clip(row, index) for row in clips.rows], labels


def groups(data, root):
    """The groups in natural order."""
    clips = _ClipTable(data, root)
    if not clips.has_groups:
        raise clips.no_groups()
    return clips.groups()


class _ClipTable:
    """The rows of a CSV of clips, checked."""

    def __init__(self, data, root):
        self.data = data
        (self.path,) = annotation_files(data, root)
        self.base = storage.place(root, data.videos or "")
        # The group column is named by the user as it stands; the others in any case.
        self.header, body = files.table(self.path, ("path", "label"), ("split", "start", "end"))
        self.has_groups, self.has_splits = data.group_column in self.header, "split" in self.header
        self.rows = self._checked(body)

    def _checked(self, body):
        faults, checked, seen = files.Faults(), [], {}
        for line, row in files.fields_of(self.path, self.header, body, faults):
            fault = self._fault(row)
            name = (storage.normal(row["path"]), row.get("start"), row.get("end"))
            if fault is None and name in seen:
                fault = f"duplicate path {row['path']!r}, first at line {seen[name]}"
            if fault is None:
                checked.append(row)
            else:
                faults.add(self.path, line, fault)
            seen.setdefault(name, line)
        faults.raise_any()
        if not checked:
            raise DataError(f"{self.path} lists no clip")
        return checked

    def _fault(self, row):
        path = row["path"]
        empty = [name for name in ("path", "label") if not row[name]]
        if empty:
            return f"empty {' and '.join(empty)}"
        # An absolute or remote path says plainly where it leads; one that climbs out is more likely a mistake.
        if files.leaves_root(path):
            return (
                f"the path {path!r} leaves the folder of the data set (an absolute or remote path may name any place)"
            )
        if self.has_splits and row["split"].lower() not in _SPLITS:
            return f"split must be train, val, validation or test. Received: {row['split']!r}"
        if self.has_groups and not row[self.data.group_column]:
            return f"empty {self.data.group_column}"
        return self._times_fault(row)

    def _times_fault(self, row):
        """Also makes numbers of the times: None where the field is empty."""
        texts = {name: row[name] for name in ("start", "end") if row.get(name)}
        for name, text in texts.items():
            row[name] = files.seconds(text)
            if row[name] is None:
                return f"{name} must be seconds from the start of the video, or empty. Received: {text!r}"
        if len(texts) == 2 and row["end"] <= row["start"]:
            return f"end must be after start. Received: start={texts['start']!r}, end={texts['end']!r}"
        if texts and self._is_folder(row):
            return "start and end belong to videos: a folder of frames has no times"
        return None

    def _is_folder(self, row):
        path = str(storage.place(self.base, row["path"]))
        if path.lower().endswith(VIDEO_SUFFIXES):
            return False
        # A remote name without a suffix is not asked about: of 100,000 rows that would take hours.
        return (storage.is_remote(path) and "." not in os.path.basename(path)) or storage.is_folder(path)

    def labels(self):
        return sorted({files.tidy(row["label"]) for row in self.rows}, key=files.natural_key)

    def group(self, row):
        return row[self.data.group_column] if self.has_groups else None

    def groups(self):
        return sorted({self.group(row) for row in self.rows}, key=files.natural_key)

    def no_groups(self):
        return DataError(
            f"{self.path} has no column {self.data.group_column!r} (data.group_column), so no group can be held out. "
            f"Columns: {', '.join(self.header)}"
        )

    def clip(self, row, index):
        path = str(storage.place(self.base, row["path"]))
        times = {name: row.get(name) or None for name in ("start", "end")}
        kind = "frames" if self._is_folder(row) else "video"
        return Clip(row["path"], path, index[files.tidy(row["label"])], kind, self.group(row), **times)


def _held_out(clips, holdout):
    if not clips.has_groups:
        raise clips.no_groups()
    known = clips.groups()
    if holdout not in known:
        hint = ""
        if holdout == "each":
            hint = " ('each' stands for all of them in turn: read_annotations takes one at a time)"
        raise DataError(
            f"{clips.path}: no group {holdout!r} in column {clips.data.group_column!r}{hint}. "
            f"There are: {', '.join(known[:50])}{', ...' if len(known) > 50 else ''}"
        )
    return [clips.group(row) == holdout for row in clips.rows]


def _random_split(clips, share):
    """Whether each row is held out: about ``share`` of every class, groups kept whole.

    Units (groups, or single clips) are taken in a random but fixed order that does not depend on the order of the
    rows; a unit is held out where that brings the held-out counts of its classes nearer to the share.
    """
    units = {}
    for number, row in enumerate(clips.rows):
        units.setdefault(clips.group(row) or storage.normal(row["path"]), []).append(number)
    if len(units) == 1:
        what = f"all clips are of one {clips.data.group_column}" if clips.has_groups else "there is one clip only"
        raise DataError(f"{clips.path} cannot be split into training and validation: {what}")
    label = [files.tidy(row["label"]) for row in clips.rows]
    # No class is held out whole, and one of two clips or more always is.
    target = {text: min(max(share * n, min(1, n - 1)), n - 1) for text, n in Counter(label).items()}
    names = sorted(units)
    random.Random(SPLIT_SEED).shuffle(names)
    held, tested = Counter(), [False] * len(label)
    for name in names:
        counts = Counter(label[number] for number in units[name])
        before = sum(abs(target[text] - held[text]) for text in counts)
        after = sum(abs(target[text] - held[text] - n) for text, n in counts.items())
        if after < before and sum(tested) + len(units[name]) < len(label):
            held += counts
            for number in units[name]:
                tested[number] = True
    if clips.has_groups and not any(tested):
        # Few, large groups: the smallest is nearest to the share.
        for number in min(units.values(), key=len):
            tested[number] = True
    if not any(tested):
        raise DataError(
            f"{clips.path} cannot be split at validation_share={share}: every class is too small. Give a split column."
        )
    return tested
