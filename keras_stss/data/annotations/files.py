"""Reading text files of annotations, and collecting what is wrong with them."""

import csv
import io
import json
import math
import os
import re
from collections import Counter

from keras_stss.data.annotations import storage
from keras_stss.data.annotations.data_set import DataError
from keras_stss.data.annotations.layouts import not_there

SHOWN = 5  # faults spelled out of each file; the rest is counted
MAX_BYTES = 2**30  # no list of clips is longer: FineGym's times, the longest, take 10 MB

_NAME = re.compile(r"[\w-][\w.-]*")


class Faults:
    """Collects the faults of the files of a data set, so that all are told at once."""

    def __init__(self):
        self._files = {}

    def add(self, path, line, text):
        """Notes a fault; ``line`` counts from 1."""
        self._files.setdefault(str(path), []).append((line, text))

    def raise_any(self):
        """Raises one :class:`DataError` over all files, where there is any fault."""
        shown = []
        for path, lines in self._files.items():
            shown += [f"{path}:{line}: {text}" for line, text in lines[:SHOWN]]
            if rest := len(lines) - SHOWN if len(lines) > SHOWN else 0:
                shown.append(f"and {rest} more, {len(lines)} faults in this file")
        if shown:
            raise DataError("\n".join(shown))


def find_file(data, root, part, names, folders=("", "labels", "annotations")):
    """The file that ``data.<part>`` names, or the first of ``names`` that lies in one of the folders."""
    found = find_optional(data, root, part, names, folders)
    if found is None:
        looked = [root / folder / name for folder in folders for name in names]
        raise not_there(data, f"the {part} list" if part != "annotations" else "the file of times", looked)
    return found


def find_optional(data, root, part, names, folders=("", "labels", "annotations")):
    """As :func:`find_file`, but None where no name is given and none of ``names`` is there."""
    given = getattr(data, part)
    if given is not None:
        path = storage.place(root, given)
        if not path.is_file():
            raise not_there(data, f"the file of data.{part}", [path])
        return path
    return next((path for folder in folders for name in names if (path := root / folder / name).is_file()), None)


def read_text(path):
    """The text of a file; a byte order mark is left out."""
    try:
        if (size := storage.size(path)) > MAX_BYTES:
            raise DataError(f"{path} has {size / 2**30:.1f} GiB: too long for a list of clips")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def read_lines(path):
    """(line number, text) of every line that is not blank, without spaces round it."""
    # Not splitlines: it also ends a line at characters that a file name may hold.
    lines = enumerate(re.split(r"\r\n|\n|\r", read_text(path)), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def rows(path, text, delimiter):
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


def table(path, wanted, optional=()):
    """Opens a CSV with a header: (header, iterator over (line, fields)).

    Args:
        path: the file; fields are parted by commas, semicolons or tabs.
        wanted: columns that must be there; they and ``optional`` ones are known in any case of letters.
        optional: columns that may be.
    """
    text = read_text(path)
    # Spreadsheets write semicolons where the comma is the decimal sign.
    delimiter = max(",;\t", key=text.lstrip().partition("\n")[0].count)
    body = rows(path, text, delimiter)
    _, header = next(body, (1, []))
    header = [name.lower() if name.lower() in (*wanted, *optional) else name for name in header]
    missing = [name for name in wanted if name not in header]
    if missing:
        raise DataError(
            f"{path}:1: the header must name the columns {_listed(wanted)}; {_listed(missing)} missing. "
            f"Received: {', '.join(header)[:200].encode('unicode_escape').decode() or 'an empty file'}"
        )
    twice = sorted(name for name, times in Counter(header).items() if times > 1)
    if twice:
        raise DataError(f"{path}:1: columns named twice: {', '.join(map(repr, twice))}")
    return header, body


def fields_of(path, header, body, faults):
    """Yields (line, {column: field}); a line with too many or too few fields is a fault."""
    for line, fields in body:
        if len(fields) != len(header):
            faults.add(path, line, f"{len(fields)} fields, the header has {len(header)}")
        else:
            yield line, dict(zip(header, fields, strict=True))


def load_json(path, kind, wanted):
    """(value, text) of a JSON file that holds a ``kind`` (dict or list), which the message calls ``wanted``."""
    text, twice = read_text(path), []

    def unique(pairs):
        twice.extend(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise DataError(f"{path}:{line}: not valid JSON: {getattr(error, 'msg', error)}") from None
    if not isinstance(value, kind):
        raise DataError(f"{path}:1: must hold {wanted}. Received: {type(value).__name__}")
    if twice:
        # A later entry would silently replace the earlier one.
        raise DataError(f"{path}:{line_of(text, twice[0], last=True)}: the key {twice[0]!r} is given twice")
    return value, text


def line_of(text, key, last=False):
    """Line of a key in the text of a JSON file, which the json module itself does not tell; 1 where not found."""
    name = json.dumps(key, ensure_ascii=False)
    return text.count("\n", 0, max(text.rfind(name) if last else text.find(name), 0)) + 1


def entry_lines(text, count):
    """Line of each entry of a JSON list."""
    decoder, lines = json.JSONDecoder(), []
    position, line = text.index("[") + 1, text.count("\n", 0, text.index("[") + 1) + 1
    for _ in range(count):
        start = re.compile(r"[\s,]*").match(text, position).end()
        line += text.count("\n", position, start)
        lines.append(line)
        _, position = decoder.raw_decode(text, start)
        line += text.count("\n", start, position)
    return lines


def is_name(text):
    """Whether an id can be part of a file's name: letters, digits, -, _ and dots inside."""
    return _NAME.fullmatch(text) is not None


def leaves_root(path):
    """Whether a path climbs out of the folder that it starts from, or stays at it."""
    return "\0" in path or os.path.normpath(path).split(os.sep)[0] in ("..", ".")


def whole_number(text, digits=9):
    """The text as a whole number from 0, or None; so many digits at most, since int() of thousands is slow."""
    return int(text) if re.fullmatch(rf"[0-9]{{1,{digits}}}", text) else None


def seconds(value):
    """A number or text as seconds from 0, or None where it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value if not isinstance(value, str) or (value.isascii() and "_" not in value) else "nan")
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def read_labels(path):
    """Label texts, one a line, in order."""
    lines = [(number, tidy(line.strip('"'))) for number, line in read_lines(path)]
    labels = [line for _, line in lines if line]
    if not labels:
        raise DataError(f"{path} names no label")
    return distinct(path, labels)


def distinct(path, labels):
    """The labels, after a check that none comes twice."""
    faults = Faults()
    for text, times in Counter(labels).items():
        if times > 1 and text:
            faults.add(path, 1, f"label {text!r} {times} times")
    faults.raise_any()
    return labels


def in_order(path, texts, faults):
    """The label texts of {index: text}: indices must be 0 to n - 1."""
    faults.raise_any()
    if not texts:
        raise DataError(f"{path} names no label")
    gaps = [number for number in range(len(texts)) if number not in texts]
    if gaps:
        raise DataError(f"{path}:1: indices must be 0 to {len(texts) - 1} without gaps; missing: {gaps[:SHOWN]}")
    return distinct(path, [texts[number] for number in range(len(texts))])


def tidy(text):
    """The text with single spaces."""
    return " ".join(text.split())


def natural_key(text: str):
    """Sort key that puts ``frame2`` before ``frame10``."""
    parts = [(part.isdecimal(), part.lstrip("0") if part.isdecimal() else part) for part in re.split(r"(\d+)", text)]
    # Digits compare by length first, so no number is too long; the text itself last, so '01' and '1' have an order.
    return [(0, len(part), part) if is_number else (1, 0, part) for is_number, part in parts], text


def _listed(names):
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
