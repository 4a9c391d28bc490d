"""Predictions in a file that grows: JSON lines or CSV, a row a clip, that a later call goes on with."""

import csv
import dataclasses
import fcntl
import io
import json
import logging
import os
from pathlib import Path

from keras_stss.data.annotations import DataError

log = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".csv")


def row_of(clip, outcome):
    """A clip's row as a dictionary.

    Args:
        clip: :class:`keras_stss.data.annotations.Clip`.
        outcome: list of (label, probability), or the reason as text why there is none.
    """
    row = {"file": clip.id} | {key: getattr(clip, key) for key in ("start", "end") if getattr(clip, key) is not None}
    if isinstance(outcome, str):
        return row | {"error": outcome}
    return row | {"top": [{"label": label, "probability": probability} for label, probability in outcome]}


def json_line(row):
    """A row as a line of JSON, in the letters of its names where they can be written."""
    line = json.dumps(row, ensure_ascii=False)
    # Names of files that are no UTF-8 reach Python as what no encoding knows.
    return line if line.isprintable() else json.dumps(row)


class PredictionFile:
    """A file of predictions, which this process holds until it is closed.

    A row is there as a whole or not at all: what a kill has torn off is cut, and done again. ``PATH.about.json``
    beside it says what made it.

    Args:
        path: file that ends in .jsonl or .csv.
        about: dictionary for JSON of what the predictions depend on; the same for all rows.
        top: labels of a row.
        clips: the clips that are to be in the file.
        batch: clips that go through the model together. The last rows are cut back to whole batches, so that the
            batches are those of a call that nothing has stopped, and so are the figures to the last digit.
        retry: also cut the rows of clips that could not be read.

    Attributes:
        done: places of the clips whose rows are there.
        failed: number of these that have an error.

    Raises:
        DataError: where the file cannot be gone on with.
    """

    def __init__(self, path, about, top, clips, batch, retry=False):
        self.path, self.about_path = Path(path), Path(f"{path}.about.json")
        if self.path.suffix.lower() not in SUFFIXES:
            raise DataError(f"predictions are written as .jsonl or .csv. Received: {path}")
        self._form = _Table(top) if self.path.suffix.lower() == ".csv" else _Lines()
        self._pending, self._readable, self._batch = [], 0, batch
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = io.FileIO(self.path, "a+")
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            self._hold()
            self._check(about)
            self._restore(clips, batch, retry)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.flush()
        finally:
            self._file.close()

    def add(self, clip, outcome):
        """Adds a row, which is written with those of its batch; see :func:`row_of`."""
        self._pending.append(self._form.encode(row_of(clip, outcome)))
        self._readable += not isinstance(outcome, str)
        self.failed += isinstance(outcome, str)
        if self._readable == self._batch:
            self.flush()

    def flush(self):
        """Hands all rows that were added to the operating system: they outlive this process."""
        content, self._pending, self._readable = b"".join(self._pending), [], 0
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error):
        return DataError(
            f"{self.path} cannot be written: {error.strerror}. What is in it counts; once that is mended, the same "
            "command goes on"
        )

    def _hold(self):
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another process is writing to {self.path}: wait for its end, or name another") from None
        except OSError as error:  # a file system that knows no locks
            log.info("%s is not locked against other processes: %s", self.path, error)

    def _check(self, about):
        """Refuses to put different things into one file."""
        if os.fstat(self._file.fileno()).st_size == 0:
            unfinished = self.about_path.with_name(f"unfinished-{self.about_path.name}")
            try:
                unfinished.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
                os.replace(unfinished, self.about_path)
            except OSError as error:
                raise self._unwritable(error) from None
            return
        try:
            before = json.loads(self.about_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path} is there, and what made it is not known ({self.about_path.name}: {error}): name another "
                "file, or remove it"
            ) from None
        if before != about:
            changed = [key for key in {**before, **about} if before.get(key) != about.get(key)]
            shown = "; ".join(
                f"{key}: {_short(before.get(key))} there, {_short(about.get(key))} now" for key in changed
            )
            raise DataError(f"{self.path} holds predictions made otherwise ({shown}): name another file, or remove it")

    def _restore(self, clips, batch, retry):
        """Cuts what does not count, and notes what is there."""
        with open(self.path, "rb") as file:
            rows = list(self._form.rows(file, self.path))
        if os.fstat(self._file.fileno()).st_size > (rows[-1].end if rows else len(self._form.head)):
            log.warning("%s: the last row is torn, and is done again", self.path)
        wanted = {_name(row_of(clip, "")): clip.place for clip in clips}
        if retry and any(row.failed and row.name in wanted for row in rows):
            rows = self._without(rows, {row.name for row in rows if row.failed} & wanted.keys())
        elif wanted.keys() - {row.name for row in rows}:
            rows = rows[: _whole(rows, wanted, batch)]
        if rows:
            self._file.truncate(rows[-1].end)
        else:
            self._file.truncate(0)
            self._pending.append(self._form.head)
        names = {row.name for row in rows}
        self.done = {place for name, place in wanted.items() if name in names}
        self.failed = sum(row.failed and row.name in wanted for row in rows)

    def _without(self, rows, names):
        """Puts a file without the rows of some clips in the place of the one that is open; returns what is left."""
        unfinished, kept = self.path.with_name(f"unfinished-{self.path.name}"), []
        with self._file, open(self.path, "rb") as old:
            self._file = io.FileIO(unfinished, "w+")
            self._hold()
            begin, end = len(self._form.head), self._file.write(self._form.head)
            for row in rows:
                if row.name not in names:
                    old.seek(begin)
                    end += self._file.write(old.read(row.end - begin))
                    kept.append(_Row(row.name, row.failed, end))
                begin = row.end
            os.fsync(self._file.fileno())
            os.replace(unfinished, self.path)
        return kept


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    """What is kept in memory of a row: the clip's name and part, whether it failed, and the row's end in bytes."""

    name: tuple
    failed: bool
    end: int


def _whole(rows, wanted, batch):
    """How many of the rows to keep, so that those of the clips wanted are whole batches of readable clips."""
    others = [number for number, row in enumerate(rows) if row.name not in wanted]
    kept, count = (others[-1] + 1 if others else 0), 0
    for number in range(kept, len(rows)):
        count += not rows[number].failed
        if not rows[number].failed and count % batch == 0:
            kept = number + 1
    return kept


def _name(row):
    return row["file"], row.get("start"), row.get("end")


def _short(value):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


class _Lines:
    """JSON lines."""

    head = b""

    def encode(self, row):
        return json_line(row).encode() + b"\n"

    def rows(self, file, path):
        """Yields a :class:`_Row` of each row, but for a last one that is torn."""
        end, torn = 0, None
        for number, line in enumerate(file, 1):
            if torn:
                raise _damaged(path, torn)
            try:
                row = json.loads(line)
                found = _Row(_name(row), "error" in row, end := end + len(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                torn = number
                continue
            if line.endswith(b"\n"):
                yield found


class _Table:
    """CSV."""

    def __init__(self, top):
        ranks = [name for number in range(1, top + 1) for name in (f"top{number}", f"probability{number}")]
        self.header = ["file", "start", "end", "error", *ranks]
        self.head = self._line(self.header)

    def encode(self, row):
        pairs = [text for each in row.get("top", ()) for text in (each["label"], f"{each['probability']:.6g}")]
        fields = [row["file"], row.get("start"), row.get("end"), row.get("error"), *pairs]
        return self._line(fields + [None] * (len(self.header) - len(fields)))

    def rows(self, file, path):
        """As of :class:`_Lines`."""
        end, last = 0, b""

        def lines():
            nonlocal end, last
            for last in file:
                end += len(last)
                yield last.decode(errors="surrogateescape")

        fault = None
        reader = csv.reader(lines(), strict=True)
        try:
            for number, fields in enumerate(reader):
                if fault is not None:
                    raise _damaged(path, fault)
                wrong = fields != self.header if number == 0 else len(fields) != len(self.header)
                if wrong:
                    fault = reader.line_num
                elif number and last.endswith(b"\n"):
                    start, stop = (float(text) if text else None for text in fields[1:3])
                    yield _Row((fields[0], start, stop), bool(fields[3]), end)
        except (csv.Error, ValueError):
            if file.read(1):
                raise _damaged(path, reader.line_num) from None

    def _line(self, fields):
        text = io.StringIO()
        csv.writer(text).writerow(fields)
        return text.getvalue().encode(errors="surrogateescape")


def _damaged(path, line):
    return DataError(f"{path}:{line}: no row of these predictions; mend it, or name another file")
