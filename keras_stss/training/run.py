"""A run directory: config.yaml, labels.json, metrics.jsonl, events, checkpoints/, best.keras, log.txt."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import yaml

from keras_stss.config import ConfigError, dump_config, load_config

#: Keys that may change between the start of a run and its continuation: they do not change what it computes.
FREE_KEYS = (
    "data.workers",
    "data.root",
    "data.max_unreadable",
    "train.run",
    "train.keep_checkpoints",
    "train.checkpoint_steps",
    "model.init",  # where the weights came from at the start
    "model.pretrained",
    "model.pretrained_strict",
)


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

    def open(self, config, labels):
        """Starts the run, or checks that the run in this folder is this one.

        Raises:
            ConfigError: where the folder holds a run with other settings, or other files.
        """
        path = self.folder / "config.yaml"
        begun = path.is_file() and self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        if begun:
            before = yaml.safe_load(path.read_text(encoding="utf-8"))
            after = yaml.safe_load(dump_config(config))
            changed = [line for line in _differences(before, after) if line.split(":")[0] not in FREE_KEYS]
            if changed:
                raise ConfigError(
                    f"{self.folder} holds a run with other settings; continue it with its own, or name another "
                    "folder with train.run=…\n  " + "\n  ".join(changed)
                )
        elif not path.is_file() and self.folder.is_dir() and any(self.folder.iterdir()):
            raise ConfigError(f"{self.folder} holds files but no run; name another folder with train.run=…")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not begun:
            write_atomically(self.folder / "labels.json", json.dumps(labels, ensure_ascii=False, indent=1) + "\n")
            write_atomically(path, dump_config(config))
        elif self.labels() != labels:
            raise ConfigError(f"{self.folder} holds a run with other class labels than the data set has now")

    def labels(self):
        """The class labels, by index."""
        return _read_json(self.folder / "labels.json")[0]

    def log_to_file(self):
        """Sends the package's log lines to ``log.txt`` as well; returns the handler."""
        handler = logging.FileHandler(self.folder / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("keras_stss").addHandler(handler)
        return handler

    def rows(self):
        """The lines of metrics.jsonl."""
        return _read_json(self.metrics, by_line=True) if self.metrics.is_file() else []

    def last_row(self):
        """The last line of metrics.jsonl; raises ConfigError where there is none."""
        rows = self.rows()
        if not rows:
            raise ConfigError(f"{self.metrics} is empty or gone, though the run has ended; name another train.run=…")
        return rows[-1]

    def keep_rows(self, epochs):
        """Drops the lines of epochs that a restored checkpoint has not seen."""
        rows = [row for row in self.rows() if row["epoch"] <= epochs]
        write_atomically(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def add_row(self, row):
        """Adds a line to metrics.jsonl."""
        write_atomically(self.metrics, "".join(json.dumps(line) + "\n" for line in [*self.rows(), row]))

    def save_scores(self, scores):
        """Writes scores.npz: index into the validation clips, label and logits of every clip that was scored."""
        unfinished = self.folder / "scores.tmp.npz"
        np.savez(unfinished, **scores)
        os.replace(unfinished, self.folder / "scores.npz")

    def save_best(self, model):
        """Writes best.keras."""
        unfinished = self.folder / "unfinished.keras"
        model.save(unfinished)
        os.replace(unfinished, self.best)


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


def _read_json(path, by_line=False):
    """The values of a JSON file, or of each of its lines."""
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(part) for part in (text.splitlines() if by_line else [text])]
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from None


def write_atomically(path, text):
    """Writes a text file that is either the old one or the whole new one."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def _differences(before, after, prefix=""):
    lines = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} there, {new!r} now")
    return lines
