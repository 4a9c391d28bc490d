"""Annotations on disk -> lists of :class:`Clip`: Something-Something V1 and V2, or a CSV of one's own clips.

Opens no clip. A clip whose file is missing stays in its list and is found unreadable when it is decoded; whatever is
wrong with the annotations themselves comes back in one :class:`DataError`.
"""

import csv
import io
import json
import logging
import os
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from keras_stss.config import DataConfig

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".webm", ".mp4", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")
SOMETHING_V2_SUFFIXES = (".webm", ".mp4", ".avi", ".mkv")  # the first that is there is taken
SHOWN = 5  # faults spelled out in a message; the rest is counted
SPLIT_SEED = 0  # fixed: every run on a file of clips must hold out the same ones

_SPLITS = dict.fromkeys(("train", "training"), "train")
_SPLITS |= dict.fromkeys(("val", "valid", "validation", "test", "testing"), "validation")
_PAGE = (
    "the Something-Something page of Qualcomm's developer site, "
    "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
)
_LAYOUTS = {
    "something_v2": f"""\
Something-Something V2 comes from {_PAGE}.
Wanted below data.root (the three lists may also lie in labels/ or annotations/):
  something-something-v2-train.json
  something-something-v2-validation.json
  something-something-v2-labels.json
  20bn-something-something-v2/1.webm, 2.webm, ...""",
    "something_v1": f"""\
Its makers no longer offer Something-Something V1 since V2 came ({_PAGE});
people have it from the 20BN release. Wanted below data.root:
  something-something-v1-train.csv
  something-something-v1-validation.csv
  something-something-v1-labels.csv
  20bn-something-something-v1/1/00001.jpg, 00002.jpg, ...""",
    "clips": """\
Wanted below data.root:
  clips.csv (the file that data.annotations names; header path,label and, if you like, split and a group)
  the clips, at the paths that it gives (videos, or folders of JPEG frames)""",
}


class DataError(ValueError):
    """A data set that cannot be used. Its text is meant for the user."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One annotated clip.

    Attributes:
        id: its name in the annotations.
        path: video file, or folder of frames.
        label: index into :attr:`DataSet.labels`.
        kind: ``"video"`` or ``"frames"``.
        group: scene, person, ... (format clips only).
    """

    id: str
    path: str
    label: int
    kind: str
    group: str | None = None


@dataclass(frozen=True)
class DataSet:
    """Training and validation clips, and the label texts in the data set's own index order."""

    train: list[Clip]
    validation: list[Clip]
    labels: list[str]


def read_annotations(data: DataConfig, holdout: str | None = None) -> DataSet:
    """Reads the annotations that ``data`` describes.

    Args:
        data: the config's data section.
        holdout: format clips: the group to test on, in place of ``data.holdout``.

    Returns:
        A :class:`DataSet`; neither of its lists is empty.

    Raises:
        DataError: where the data set is not there, or naming file and line of what is wrong with it.
    """
    check_there(data)
    root = Path(data.root)
    if data.format == "clips":
        data_set = _read_clips(data, root, holdout if holdout is not None else data.holdout)
    elif holdout is not None:
        raise DataError(f"holdout belongs to format 'clips'; {data.format} has its own validation list")
    else:
        data_set = _read_something(data, root)
    untrained = sorted(set(range(len(data_set.labels))) - {clip.label for clip in data_set.train})
    if untrained:
        names = ", ".join(repr(data_set.labels[index]) for index in untrained[:SHOWN])
        logger.warning("%d of %d labels have no training clip: %s", len(untrained), len(data_set.labels), names)
    return data_set


def check_there(data: DataConfig):
    """Reads nothing, but raises :class:`DataError` where the folder or its annotation files are missing."""
    root = Path(data.root)
    if not root.is_dir():
        raise _not_there(data, f"the folder {root} (data.root)", [root.absolute()])
    if data.format != "clips":
        for part in ("labels", "train", "validation"):
            _annotation_file(data, root, part)


def groups(data: DataConfig) -> list[str]:
    """The groups of a CSV of clips, in natural order ("2" before "10").

    Raises:
        DataError: as :func:`read_annotations`, and where there is no group column.
    """
    if data.format != "clips":
        raise DataError(f"groups belong to format 'clips'. Received: data.format={data.format!r}")
    table = _ClipTable(data, Path(data.root))
    if not table.has_groups:
        raise table.no_groups()
    return table.groups()


def natural_key(text: str):
    """Sort key that puts ``frame2`` before ``frame10``."""
    parts = [(part.isdecimal(), part.lstrip("0") if part.isdecimal() else part) for part in re.split(r"(\d+)", text)]
    # Digits compare by length first, so no number is too long; the text itself last, so '01' and '1' have an order.
    return [(0, len(part), part) if is_number else (1, 0, part) for is_number, part in parts], text


class _Faults:
    """Collects the faults of one file, so that all are told at once."""

    def __init__(self, path):
        self.path, self.lines = path, []

    def add(self, line, text):
        self.lines.append((line, text))

    def raise_any(self):
        if not self.lines:
            return
        shown = [f"{self.path}:{line}: {text}" for line, text in self.lines[:SHOWN]]
        rest = len(self.lines) - len(shown)
        if rest:
            shown.append(f"and {rest} more, {len(self.lines)} faults in this file")
        raise DataError("\n".join(shown))


def _not_there(data, what, looked):
    places = "\n".join(f"  {place}" for place in dict.fromkeys(map(str, looked)))
    return DataError(f"data set not found: {what} is missing. Looked for:\n{places}\n{_LAYOUTS[data.format]}")


def _read_text(path):
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _rows(path, text, delimiter):
    """Yields (line, fields) of a CSV; blank lines are left out, spaces round a field too."""
    # skipinitialspace: a quote counts as one after a space too.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        line = 1
        for row in reader:
            fields = [field.strip() for field in row]
            if any(fields):
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a CSV line: {error}") from None


# --- Something-Something ----------------------------------------------------------------------------------------------


def _read_something(data, root):
    version_2 = data.format == "something_v2"
    label_path, *list_paths = (_annotation_file(data, root, part) for part in ("labels", "train", "validation"))
    labels = _labels_v2(label_path) if version_2 else _labels_v1(label_path)
    index = {text: number for number, text in enumerate(labels)}
    lists = [_checked_list(path, _list_v2 if version_2 else _list_v1, index, label_path) for path in list_paths]
    training, testing = ({clip_id for clip_id, _ in entries} for entries in lists)
    if both := training & testing:
        logger.warning("%d clips are both in training and in validation: its figures will flatter", len(both))
    locate = _locator(data, root, SOMETHING_V2_SUFFIXES if version_2 else ("",), training | testing)
    kind = "video" if version_2 else "frames"
    clips = [[Clip(clip_id, locate(clip_id), label, kind) for clip_id, label in entries] for entries in lists]
    return DataSet(*clips, labels)


def _annotation_file(data, root, part):
    given = getattr(data, part)
    if given is not None:
        if not (root / given).is_file():
            raise _not_there(data, f"the file of data.{part}", [root / given])
        return root / given
    suffix = ".json" if data.format == "something_v2" else ".csv"
    names = [f"something-something-{data.format[-2:]}-{part}{suffix}", f"{part}{suffix}"]
    looked = [root / folder / name for folder in ("", "labels", "annotations") for name in names]
    for path in looked:
        if path.is_file():
            return path
    raise _not_there(data, f"the {part} list", looked)


def _checked_list(path, read_list, index, label_path):
    """(id, label index) of one list."""
    faults, entries, seen = _Faults(path), [], {}
    for line, clip_id, text in read_list(path, faults):
        if not re.fullmatch(r"\w[\w.-]*", clip_id):
            faults.add(line, f"the id {clip_id!r} is not a plain name")
        elif clip_id in seen:
            faults.add(line, f"duplicate id {clip_id!r}, first at {seen[clip_id]}")
        elif text not in index:
            faults.add(line, f"unknown label {text!r} (id {clip_id}): not one of the {len(index)} in {label_path}")
        else:
            entries.append((clip_id, index[text]))
        seen.setdefault(clip_id, f"{path}:{line}")
    faults.raise_any()
    if not entries:
        raise DataError(f"{path} lists no clip")
    return entries


def _locator(data, root, suffixes, ids):
    """Maps an id to its path. The folder is listed once: a look-up on disk for each of 220,000 clips would be slow."""
    name = f"20bn-something-something-{data.format[-2:]}"
    places = [root / data.videos] if data.videos is not None else [root / name, root / "videos", root]
    for place in places:
        names = set(os.listdir(place)) if place.is_dir() else set()
        missing = sum(not any(clip_id + suffix in names for suffix in suffixes) for clip_id in ids)
        if missing < len(ids):
            break
    else:
        raise _not_there(data, "the folder of the clips (none of the listed ones is in any)", places)
    if missing:
        logger.warning("%d of %d clips have no file in %s", missing, len(ids), place)

    def locate(clip_id):
        found = next((suffix for suffix in suffixes if clip_id + suffix in names), suffixes[0])
        return str(place / (clip_id + found))

    return locate


def _load_json(path, kind):
    text = _read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise DataError(f"{path}:{line}: not valid JSON: {getattr(error, 'msg', error)}") from None
    if not isinstance(value, kind):
        wanted = "an object {text: index}" if kind is dict else "a list of clips"
        raise DataError(f"{path}:1: must hold {wanted}. Received: {type(value).__name__}")
    return value, text


def _labels_v2(path):
    table, _ = _load_json(path, dict)
    texts, faults = {}, _Faults(path)
    for text, number in table.items():
        if not re.fullmatch(r"[0-9]{1,9}", str(number)) or isinstance(number, bool):
            faults.add(1, f"the index of {text!r} is not a whole number. Received: {number!r}")
        elif int(number) in texts:
            faults.add(1, f"index {int(number)} twice: {texts[int(number)]!r} and {text!r}")
        else:
            texts[int(number)] = _tidy(re.sub(r"[\[\]]", "", text))
    faults.raise_any()
    if not texts:
        raise DataError(f"{path} names no label")
    gaps = [number for number in range(len(texts)) if number not in texts]
    if gaps:
        faults.add(1, f"indices must be 0 to {len(texts) - 1} without gaps; missing: {gaps[:SHOWN]}")
    return _distinct_labels([texts.get(number, "") for number in range(len(texts))], faults)


def _labels_v1(path):
    lines = [_tidy(line.strip().strip('"')) for line in _read_text(path).splitlines()]
    labels = [line for line in lines if line]
    if not labels:
        raise DataError(f"{path} names no label")
    return _distinct_labels(labels, _Faults(path))


def _distinct_labels(labels, faults):
    for text, times in Counter(labels).items():
        if times > 1 and text:
            faults.add(1, f"label {text!r} {times} times")
    faults.raise_any()
    return labels


def _tidy(text):
    return " ".join(text.split())


def _list_v2(path, faults):
    entries, text = _load_json(path, list)
    lines = _entry_lines(text, len(entries))
    for line, entry in zip(lines, entries, strict=True):
        fields = entry if isinstance(entry, dict) else {}
        clip_id, template = fields.get("id"), fields.get("template")
        if isinstance(clip_id, bool) or not isinstance(clip_id, str | int) or not isinstance(template, str):
            faults.add(line, f"an entry needs id and template. Received: {str(entry)[:80]}")
        else:
            yield line, str(clip_id).strip(), _tidy(re.sub(r"[\[\]]", "", template))


def _entry_lines(text, count):
    """Line of each entry of a JSON list, which the json module itself does not tell."""
    decoder, lines = json.JSONDecoder(), []
    position, line = text.index("[") + 1, text.count("\n", 0, text.index("[") + 1) + 1
    for _ in range(count):
        start = re.compile(r"[\s,]*").match(text, position).end()
        line += text.count("\n", position, start)
        lines.append(line)
        _, position = decoder.raw_decode(text, start)
        line += text.count("\n", start, position)
    return lines


def _list_v1(path, faults):
    for number, (line, fields) in enumerate(_rows(path, _read_text(path), ";")):
        if number == 0 and [field.lower() for field in fields] == ["id", "label"]:
            continue
        if len(fields) != 2:
            faults.add(line, f"wanted id;label text. Received: {';'.join(fields)[:80]!r}")
        else:
            yield line, fields[0], _tidy(fields[1])


# --- a CSV of one's own clips -----------------------------------------------------------------------------------------


class _ClipTable:
    """The rows of a CSV of clips, checked."""

    def __init__(self, data, root):
        self.data, self.path = data, root / data.annotations
        if not self.path.is_file():
            raise _not_there(data, "the file of data.annotations", [self.path])
        self.base = root / data.videos if data.videos is not None else root
        text = _read_text(self.path)
        # Spreadsheets write semicolons where the comma is the decimal sign.
        delimiter = max(",;\t", key=text.lstrip().partition("\n")[0].count)
        rows = _rows(self.path, text, delimiter)
        _, header = next(rows, (1, []))
        # The group column is named by the user as it stands; the others in any case.
        self.header = [name.lower() if name.lower() in ("path", "label", "split") else name for name in header]
        self._check_header()
        self.has_groups, self.has_splits = data.group_column in self.header, "split" in self.header
        self.rows = self._checked(rows)

    def _check_header(self):
        missing = [name for name in ("path", "label") if name not in self.header]
        if missing:
            raise DataError(
                f"{self.path}:1: the header must name the columns path and label; {' and '.join(missing)} missing. "
                f"Received: {', '.join(self.header) or 'an empty file'}"
            )
        twice = sorted(name for name, times in Counter(self.header).items() if times > 1)
        if twice:
            raise DataError(f"{self.path}:1: columns named twice: {', '.join(map(repr, twice))}")

    def _checked(self, rows):
        faults, checked, seen = _Faults(self.path), [], {}
        for line, fields in rows:
            if len(fields) != len(self.header):
                faults.add(line, f"{len(fields)} fields, the header has {len(self.header)}")
                continue
            row = dict(zip(self.header, fields, strict=True))
            fault = self._fault(row)
            name = os.path.normpath(row["path"])
            if fault is None and name in seen:
                fault = f"duplicate path {row['path']!r}, first at line {seen[name]}"
            if fault is None:
                checked.append(row)
            else:
                faults.add(line, fault)
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
        # An absolute path says plainly where it leads; one that climbs out of the folder is more likely a mistake.
        if "\0" in path or os.path.normpath(path).split(os.sep)[0] in ("..", "."):
            return f"the path {path!r} leaves the folder of the data set (an absolute path may name any place)"
        if self.has_splits and row["split"].lower() not in _SPLITS:
            return f"split must be train, val, validation or test. Received: {row['split']!r}"
        if self.has_groups and not row[self.data.group_column]:
            return f"empty {self.data.group_column}"
        return None

    def group(self, row):
        return row[self.data.group_column] if self.has_groups else None

    def groups(self):
        return sorted({self.group(row) for row in self.rows}, key=natural_key)

    def no_groups(self):
        return DataError(
            f"{self.path} has no column {self.data.group_column!r} (data.group_column), so no group can be held out. "
            f"Columns: {', '.join(self.header)}"
        )

    def clip(self, row, index):
        path = str(self.base / row["path"])
        is_folder = not path.lower().endswith(VIDEO_SUFFIXES) and os.path.isdir(path)
        return Clip(row["path"], path, index[_tidy(row["label"])], "frames" if is_folder else "video", self.group(row))


def _read_clips(data, root, holdout):
    table = _ClipTable(data, root)
    labels = sorted({_tidy(row["label"]) for row in table.rows}, key=natural_key)
    if holdout is not None:
        tested = _held_out(table, holdout)
    elif table.has_splits:
        tested = [_SPLITS[row["split"].lower()] == "validation" for row in table.rows]
    else:
        tested = _random_split(table, data.validation_share)
    index = {text: number for number, text in enumerate(labels)}
    lists = {False: [], True: []}
    for row, is_tested in zip(table.rows, tested, strict=True):
        lists[is_tested].append(table.clip(row, index))
    for is_tested, name in ((False, "training"), (True, "validation")):
        if not lists[is_tested]:
            raise DataError(f"{table.path}: no clip is left for {name} ({len(table.rows)} clips in all)")
    return DataSet(lists[False], lists[True], labels)


def _held_out(table, holdout):
    if not table.has_groups:
        raise table.no_groups()
    known = table.groups()
    if holdout not in known:
        hint = ""
        if holdout == "each":
            hint = " ('each' stands for all of them in turn: read_annotations takes one at a time)"
        raise DataError(
            f"{table.path}: no group {holdout!r} in column {table.data.group_column!r}{hint}. "
            f"There are: {', '.join(known[:50])}{', ...' if len(known) > 50 else ''}"
        )
    return [table.group(row) == holdout for row in table.rows]


def _random_split(table, share):
    """Whether each row is held out: about ``share`` of every class, groups kept whole.

    Units (groups, or single clips) are taken in a random but fixed order that does not depend on the order of the
    rows; a unit is held out where that brings the held-out counts of its classes nearer to the share.
    """
    units = {}
    for number, row in enumerate(table.rows):
        units.setdefault(table.group(row) or os.path.normpath(row["path"]), []).append(number)
    if len(units) == 1:
        what = f"all clips are of one {table.data.group_column}" if table.has_groups else "there is one clip only"
        raise DataError(f"{table.path} cannot be split into training and validation: {what}")
    label = [_tidy(row["label"]) for row in table.rows]
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
    if table.has_groups and not any(tested):
        # Few, large groups: the smallest is nearest to the share.
        for number in min(units.values(), key=len):
            tested[number] = True
    if not any(tested):
        raise DataError(
            f"{table.path} cannot be split at validation_share={share}: every class is too small. Give a split column."
        )
    return tested
