"""What a run's folder holds: all of it, or as much as is there."""

import dataclasses
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import yaml

from keras_stss.config import Config, ConfigError, load_config
from keras_stss.data.annotations import Clip, DataError, read_annotations
from keras_stss.evaluation.figures import all_figures
from keras_stss.evaluation.protocols import DEFAULT, PROTOCOLS
from keras_stss.evaluation.scores import Scores, clip_names, what_scores_depend_on
from keras_stss.training.saving.run import Run, check_same_labels

_FIGURES = (
    "top1",
    "top5",
    "mean_class",
    "loss",
    "clips",
    "classes",
    "confusion",
    "confused",
    "calibration",
    "intervals",
)


@dataclasses.dataclass
class ReportedRun:
    """A run to report on. What its folder does not hold is empty here.

    Attributes:
        name: short, and no other run's.
        folder: its directory.
        labels: class names by index.
        values: config.yaml as nested dictionaries, and ``text``, as it is written.
        config: the same as :class:`keras_stss.config.Config`; None where this version cannot read it.
        rows: the lines of metrics.jsonl, one an epoch.
        evaluations: {protocol: figures} as :func:`keras_stss.evaluation.figures.all_figures` gives them.
        scores: {protocol: Scores}.
        robustness: (figures of :func:`keras_stss.evaluation.robustness.with_means`, protocol), or None.
        clips: the validation clips as they are listed now; empty where they cannot be.
        notes: texts on what is there and cannot be used, each with what to do.
    """

    name: str
    folder: Path
    labels: list[str]
    text: str = ""
    values: dict = dataclasses.field(default_factory=dict)
    config: Config | None = None
    rows: list[dict] = dataclasses.field(default_factory=list)
    evaluations: dict = dataclasses.field(default_factory=dict)
    scores: dict[str, Scores] = dataclasses.field(default_factory=dict)
    robustness: tuple | None = None
    clips: list[Clip] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def has_model(self):
        """Whether best.keras is there."""
        return Run(self.folder).best.is_file()

    def saved_by(self):
        """{"keras_version", "date_saved"} of best.keras, as far as it says so."""
        return self._of_model("metadata.json")

    @property
    def is_ensemble(self):
        """Whether best.keras is one: config.yaml may be that of one of its networks."""
        layers = self._of_model("config.json").get("config", {}).get("layers", [])
        return any(layer.get("name") == "member0_logits" for layer in layers)

    def _of_model(self, name):
        """A JSON file inside of best.keras; {} where it cannot be read."""
        try:
            with zipfile.ZipFile(Run(self.folder).best) as file:
                found = json.loads(file.read(name))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile):
            return {}
        return found if isinstance(found, dict) else {}

    def log(self):
        """The lines of log.txt; none where there is no such file."""
        try:
            return (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []


def read_runs(folders, overrides=()):
    """The runs of some folders, which must have the same labels.

    Args:
        folders: paths of run directories.
        overrides: ``data.…=…`` texts that change where and how clips are found.

    Returns:
        List of :class:`ReportedRun`.

    Raises:
        ConfigError: where a folder is no run directory, or where labels differ.
    """
    names = _short_names(folders)
    runs = [_read_run(name, Path(folder), overrides) for name, folder in zip(names, folders, strict=True)]
    check_same_labels(runs, "make a page for each")
    for run in runs:
        run.robustness = next(filter(None, (_robustness_of(run, other) for other in (run, *runs))), None)
    return runs


def _short_names(folders):
    """The last parts of the paths, as few as tell them apart."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise ConfigError("a run is named twice")
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def _read_run(name, folder, overrides):
    path = folder / "config.yaml"
    if not path.is_file() or not (folder / "labels.json").is_file():
        raise ConfigError(
            f"{folder} is not a run directory: it has no config.yaml and labels.json (train.py makes them)"
        )
    run = ReportedRun(name, folder, Run(folder).labels(), path.read_text(encoding="utf-8", errors="replace"))
    try:
        run.values = yaml.safe_load(run.text) or {}
        run.config = load_config(path)
    except (ConfigError, yaml.YAMLError) as error:
        run.notes.append(f"{path} cannot be read by this version, so there are no clips and no cost: {error}")
    if run.config is not None and overrides:
        run.config = load_config(path, list(overrides))
    _read_rows(run)
    if run.config is not None:
        try:
            run.clips = read_annotations(run.config.data).validation
        except (DataError, ConfigError, OSError) as error:
            run.notes.append(f"the data set of {name} is not where it was (data.root=… says where it is now): {error}")
    for protocol in _protocols_of(folder):
        _read_protocol(run, protocol)
    return run


def _read_rows(run):
    try:
        lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = json.loads(line)
            run.rows += [row] if isinstance(row["epoch"], int) else []
        except (ValueError, KeyError, TypeError):  # the last line of a run that was killed
            run.notes.append(f"{run.folder / 'metrics.jsonl'} holds a line that is no epoch: {line[:60]!r}")


def _protocols_of(folder):
    """The names of what was evaluated: the default one first, then as the package lists them, then others."""
    found = {re.sub("^evaluation-", "", path.stem) for path in folder.glob("evaluation-*.json")}
    found |= {path.stem for path in (folder / "scores").glob("*.npz") if not path.stem.startswith("unfinished")}
    known = [DEFAULT, *(name for name in PROTOCOLS if name != DEFAULT)]
    return [name for name in known if name in found] + sorted(found.difference(known))


def _read_protocol(run, protocol):
    again = f"keras-stss evaluate {run.folder} --protocol {protocol} --again"
    scores = Scores.load(run.folder / "scores" / f"{protocol}.npz")
    if scores is not None and _fits(scores, run):
        run.scores[protocol] = scores
        if diverged := int(np.count_nonzero(~np.isfinite(scores.logits).all(axis=1))):
            run.notes.append(f"the scores of {run.name} by {protocol} are no numbers for {diverged:,} clips")
        if protocol in PROTOCOLS and run.clips and run.has_model:
            now = what_scores_depend_on(Run(run.folder).best, run.clips, run.config.data, PROTOCOLS[protocol])
            if scores.depends.get("model") != now["model"]:
                run.notes.append(f"the scores of {run.name} by {protocol} are of an earlier best.keras: {again}")
    path = run.folder / f"evaluation-{protocol}.json"
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        if all(key in figures for key in _FIGURES):
            run.evaluations[protocol] = figures
            return
        run.notes.append(f"{path} is of another version: {again}")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError) as error:
        run.notes.append(f"{path} cannot be read ({error}): {again}")
    if protocol in run.scores:
        run.evaluations[protocol] = all_figures(run.scores[protocol], run.labels)


def _fits(scores, run):
    shape = np.shape(scores.logits)
    return len(shape) == 2 and 0 < shape[0] == len(scores.clips) and shape[1] == len(run.labels)


def _robustness_of(run, holder):
    """What the robustness.json of a run says of another one, or of itself, and by which protocol."""
    try:
        found = json.loads((holder.folder / "robustness.json").read_text(encoding="utf-8"))
        start = _start_of(found, holder)
        for each in found["runs"]:
            is_it = (start / each["run"]).resolve() == run.folder.resolve()
            if is_it or (holder is run and (len(found["runs"]) == 1 or Path(each["run"]).name == run.folder.name)):
                return {key: each[key] for key in ("clean", "corruptions", "relative", "mean_relative")}, found[
                    "protocol"
                ]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        note = f"{holder.folder / 'robustness.json'} cannot be read: {error!r}"
        if note not in holder.notes:
            holder.notes.append(note)
    return None


def _start_of(found, holder):
    """Where the paths of a robustness.json start: whence one leads to its own folder, as far as one does so."""
    own = holder.folder.resolve().parts
    for parts in (Path(each["run"]).parts for each in found["runs"]):
        if parts and own[-len(parts) :] == parts:
            return Path(*own[: -len(parts)])
    return Path()


def clips_of(run, scores):
    """{row of the scores: clip}, of those that are still in the run's data set under their names."""
    names = clip_names(run.clips) if run.clips else []
    places = {name: place for place, name in enumerate(names)}
    return {
        row: run.clips[places[name]]
        for row, name in enumerate(scores.clips.tolist())
        if name in places and run.clips[places[name]].label == scores.label[row]
    }
