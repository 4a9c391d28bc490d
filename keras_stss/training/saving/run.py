"""A run directory: config.yaml, labels.json, metrics.jsonl, events, checkpoints/, best.keras, log.txt."""

import contextlib
import fcntl
import json
import logging
import math
import os
from pathlib import Path

import numpy as np

from keras_stss.config import ConfigError, dump_config, load_config
from keras_stss.training.saving.files import is_unfinished, remove_unfinished, replacing, write_atomically

log = logging.getLogger(__name__)

#: Keys, and sections, that may change between the start of a run and its continuation: they do not change what it
#: computes.
FREE_KEYS = (
    "data.workers",
    "data.root",
    "data.max_unreadable",
    "train.run",
    "train.resume",
    "train.keep_checkpoints",
    "train.checkpoint_steps",
    "train.cluster",
    "train.restarts",
    "train.wait",
    "train.board",
    "evaluate.batch_size",
    "model.init",  # where the weights came from at the start
    "model.pretrained",
    "model.pretrained_strict",
)

#: Keys that may change, too, and change the figures by rounding (and batch normalisation's, by the share of a device):
#: a run goes on where there is a machine for it.
DEVICE_KEYS = ("train.strategy", "train.devices", "train.logical_cpus", "train.xla")


class Run:
    """One run directory.

    Args:
        folder: path; made where it does not exist.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self.best = self.folder / "best.keras"
        self.metrics = self.folder / "metrics.jsonl"
        self.events = self.folder / "tensorboard"

    def open(self, config, labels, resume=None):
        """Starts the run, or checks that the run in this folder is this one.

        Args:
            config: :class:`keras_stss.config.Config`.
            labels: class labels, by index.
            resume: "auto" or "never" (default: ``train.resume``); a process that another one starts again needs "auto".

        Raises:
            ConfigError: where the folder holds a run with other settings, or other files, or a run that cannot go on.
        """
        path = self.folder / "config.yaml"
        begun = path.is_file() and self._has_begun()
        if begun:
            self._check_same(load_config(path), config, resume or config.train.resume)
        elif not path.is_file() and self.folder.is_dir() and not all(map(is_unfinished, self.folder.iterdir())):
            raise ConfigError(f"{self.folder} holds files but no run; name another folder with train.run=…")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not begun:
            # The config first: where there is no room for both, the folder is still known as a run's.
            write_atomically(path, dump_config(config))
            write_atomically(self.folder / "labels.json", json.dumps(labels, ensure_ascii=False, indent=1) + "\n")
        elif self.labels() != labels:
            raise ConfigError(f"{self.folder} holds a run with other class labels than the data set has now")

    def _has_begun(self):
        """Whether there is, or was, anything to go on from."""
        saved = [*self.checkpoints.glob("step-*.npz"), *self.checkpoints.glob("*.damaged")]
        return bool(saved) or (self.metrics.is_file() and self.metrics.stat().st_size > 0)

    def _check_same(self, before, after, resume):
        """Raises where the run that was begun cannot go on. Keys that it does not know have their defaults there."""
        if resume == "never":
            raise ConfigError(
                f"{self.folder} holds a run already, and train.resume is never; name another folder with train.run=…, "
                "or go on with it by train.resume=auto"
            )
        lines = _differences(before.model_dump(mode="json"), after.model_dump(mode="json"))
        changed = [line for line in lines if not _is_among(line, (*FREE_KEYS, *DEVICE_KEYS))]
        if changed:
            raise ConfigError(
                f"{self.folder} holds a run with other settings; continue it with its own, or name another "
                "folder with train.run=…\n  " + "\n  ".join(changed)
            )
        if not any(self.checkpoints.glob("step-*.npz")):
            raise ConfigError(
                f"{self.folder} holds a run of {len(self.rows())} epochs but no checkpoint to go on from; put one back "
                f"into {self.checkpoints}, or begin anew in another folder with train.run=…"
            )
        for line in lines:
            if _is_among(line, DEVICE_KEYS):
                log.warning("going on with %s: the figures may differ by rounding", line)

    @contextlib.contextmanager
    def claimed(self):
        """Holds the folder for this process: two that train in one folder would spoil each other's files.

        To be entered before :meth:`open`, which writes. The folder is made where it does not exist.

        Raises:
            ConfigError: where another process holds it, or it is no folder.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"{self.folder} is, or lies below, a file; name a folder with train.run=…") from None
        with contextlib.ExitStack() as stack:
            number = os.open(self.folder, os.O_RDONLY)
            stack.callback(os.close, number)  # which gives the folder free, as the end of the process does
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another process is training in {self.folder}: wait for its end, or name another folder with "
                    "train.run=…"
                ) from None
            except OSError as error:  # a file system that knows no locks
                log.info("%s is not locked against other processes: %s", self.folder, error)
            if (self.folder / "config.yaml").is_file():  # not in a folder of somebody else's
                remove_unfinished(self.folder)
            yield

    def labels(self):
        """The class labels, by index."""
        return _read_json(self.folder / "labels.json")

    @contextlib.contextmanager
    def logged(self):
        """Sends the package's log lines to ``log.txt`` as well."""
        handler = _LogFile(self.folder / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger("keras_stss")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()

    def rows(self):
        """The lines of metrics.jsonl; where a power cut has torn the last one, those before it, with a warning."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):
                    raise ConfigError(f"{self.metrics} cannot be read as JSON: line {number}: {error}") from None
                log.warning("%s: the last line is torn and left out: %.60s", self.metrics, line)
        return rows

    def last_row(self):
        """The last line of metrics.jsonl; raises ConfigError where there is none."""
        rows = self.rows()
        if not rows:
            raise ConfigError(f"{self.metrics} is empty or gone, though the run has ended; name another train.run=…")
        return rows[-1]

    def keep_rows(self, epochs):
        """Drops the lines of epochs that a restored checkpoint has not seen, and what is left of a torn one."""
        rows = self.rows()
        if rows and rows[-1].get("best_epoch", 0) > epochs:
            log.warning(
                "%s is of epoch %d, which is trained again; it stays until an epoch beats those up to %d",
                self.best, rows[-1]["best_epoch"], epochs,
            )  # fmt: skip
        self._write_rows([row for row in rows if row["epoch"] <= epochs])

    def add_row(self, row):
        """Adds a line to metrics.jsonl; who reads it meanwhile sees the old lines or all of them."""
        self._write_rows([*self.rows(), row])

    def _write_rows(self, rows):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not self.metrics.is_file() or self.metrics.read_bytes() != text.encode():
            write_atomically(self.metrics, text)

    def save_scores(self, scores):
        """Writes scores.npz: index into the validation clips, label and logits of every clip that was scored."""
        with replacing(self.folder / "scores.npz") as unfinished:
            np.savez(unfinished, **scores)

    def save_best(self, model):
        """Writes best.keras."""
        with replacing(self.best) as unfinished:
            model.save(unfinished)


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short, without a traceback for every line that is lost."""

    def handleError(self, record):
        pass


def is_better(metric, value, best):
    """Whether a figure of the validation clips beats the best so far.

    Args:
        metric: ``train.best``: "loss" is better lower, all others higher.
        value: the figure; one that is no number beats nothing.
        best: the best so far, or None.
    """
    if best is None or math.isnan(best):
        return best is None or not math.isnan(value)
    return value < best if metric == "loss" else value > best


def read_run(folder):
    """Config and labels of a run directory.

    Returns:
        (:class:`Run`, config, labels)

    Raises:
        ConfigError: where it is none.
    """
    run = Run(folder)
    if not (run.folder / "config.yaml").is_file() or not (run.folder / "labels.json").is_file():
        raise ConfigError(
            f"{folder} is not a run directory: it has no config.yaml and labels.json (train.py makes them)"
        )
    return run, load_config(run.folder / "config.yaml"), run.labels()


def check_same_labels(runs, advice):
    """Raises ConfigError where runs do not know the same classes in the same order.

    Args:
        runs: objects with ``name`` and ``labels``.
        advice: what that means for the user, the message's end.
    """
    first = runs[0]
    for other in runs[1:]:
        if other.labels != first.labels:
            lacking = [text for text in first.labels if text not in other.labels]
            what = f"{other.name} has no {lacking[0]!r}" if lacking else "or their order is"
            raise ConfigError(
                f"the labels of {first.name} ({len(first.labels)}) and {other.name} ({len(other.labels)}) are "
                f"different, {what}: {advice}"
            )


def _read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from None


def _differences(before, after, prefix=""):
    lines = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} there, {new!r} now")
    return lines


def _is_among(line, keys):
    """Whether a line of :func:`_differences` is about one of these keys, or of these sections."""
    changed = line.split(":")[0]
    return any(changed == key or changed.startswith(f"{key}.") for key in keys)
