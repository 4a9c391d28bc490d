"""What the commands that test runs have in common: a run, its clips and devices, and the scores it has already."""

import logging
import re
import sys

from keras_stss.config import ConfigError, TrainConfig, load_config

log = logging.getLogger(__name__)

_CHANGEABLE = ("data.", "evaluate.")


def add_options(command):
    """The runs, ``--devices`` and ``--again``, and overrides anywhere on the line."""
    command.add_argument("runs", nargs="+", metavar="RUN", help="run directory")
    command.add_argument(
        "--devices", type=int, metavar="N", help="GPUs to use (default: all); without GPUs, N parts of the CPU"
    )
    command.add_argument("--again", action="store_true", help="score anew, though there are scores in the run's folder")
    command.add_argument("--json", action="store_true", help="print the figures as JSON")
    command.set_defaults(overrides=[], name=command.prog.split()[-1])
    command.epilog = "Overrides key.path=value change data.… and evaluate.… keys of all runs."


def split_overrides(options):
    """Moves what is no run from ``options.runs`` to ``options.overrides``; raises ConfigError for what cannot be."""
    of_runs = [item for item in options.runs if not _is_override(item)]
    options.overrides += [item for item in options.runs if _is_override(item)]
    if bad := [item for item in options.overrides if not item.startswith(_CHANGEABLE)]:
        raise ConfigError(f"{options.name} changes only data.… and evaluate.… keys. Received: {', '.join(bad)}")
    if not of_runs:
        raise ConfigError("name a run directory")
    options.runs = of_runs


def _is_override(item):
    return bool(re.match(r"\w+(\.\w+)*=", item)) or item.startswith(_CHANGEABLE)


def make_test_strategy(devices=None):
    """The devices to test on: all GPUs, or so many of them; without GPUs the CPU, or so many parts of it."""
    import tensorflow as tf

    from keras_stss.training.workers.distribute import make_strategy

    if devices is not None and devices < 1:
        raise ConfigError(f"--devices must be at least 1. Received: {devices}")
    gpus = len(tf.config.list_physical_devices("GPU"))
    if gpus and devices is not None and devices > gpus:
        raise ConfigError(f"--devices must not be more than there are GPUs, {gpus}. Received: {devices}")
    count = devices or max(gpus, 1)
    if count == 1:
        return make_strategy(TrainConfig(strategy="one"))
    names = tuple(f"GPU:{number}" for number in range(count)) if gpus else ()
    parts = 1 if gpus else count
    return make_strategy(TrainConfig(strategy="mirrored", devices=names, logical_cpus=parts, batch_size=count))


class OpenedRun:
    """A run that is tested; where its data set is gone, by the scores that it has.

    Args:
        folder: run directory.
        overrides: of its config.
        strategy: ``tf.distribute.Strategy``.

    Raises:
        ConfigError, DataError: for what the user can mend.
    """

    def __init__(self, folder, overrides, strategy):
        from keras_stss.data.annotations import DataError, check_there, read_annotations
        from keras_stss.training.saving.run import read_run

        self.name, self.strategy, self._scorer, self._depends = str(folder), strategy, None, {}
        self.run, self.config, self.labels = read_run(folder)
        if overrides:
            self.config = load_config(self.run.folder / "config.yaml", overrides)
        self.clips, self._gone = [], None
        try:
            check_there(self.config.data)
        except DataError as error:
            if not (self.run.folder / "scores").is_dir():
                raise
            self._gone = error
            return
        data_set = read_annotations(self.config.data)
        if data_set.labels != self.labels:
            lacking = [text for text in self.labels if text not in data_set.labels]
            what = f"it has no {lacking[0]!r}" if lacking else "it has more, or another order"
            raise DataError(
                f"the data set's {len(data_set.labels)} labels are not those that {folder} was trained on "
                f"({len(self.labels)}): {what}"
            )
        self.clips = data_set.validation

    def scores(self, name, protocol, again=False, change=None, changed_by=None, known=None):
        """Scores of the best model, from the run's folder where they are those wanted, else computed.

        Args:
            name: of the files in the folder ``scores``, without ending, where :meth:`keep` puts them.
            protocol: :class:`keras_stss.evaluation.protocols.NamedProtocol`.
            again: compute them in any case.
            change, known: see :meth:`keras_stss.evaluation.evaluate.Scorer.score`.
            changed_by: what says, as a value for JSON, which change that is.

        Returns:
            (:class:`keras_stss.evaluation.scores.Scores`, whether they were computed now)
        """
        from keras_stss.evaluation.scores import Scores, what_scores_depend_on

        if protocol not in self._depends:  # the digest of a large model takes its time
            self._depends[protocol] = what_scores_depend_on(self.run.best, self.clips, self.config.data, protocol)
        depends = self._depends[protocol] | ({} if changed_by is None else {"change": changed_by})
        path = self.path(name)
        found = None if again else Scores.load(path)
        gone = {"model": depends["model"] is None and str(self.run.best), "clips": self._gone and "the data set"}
        if found is not None and any(gone.values()):
            what = " and ".join(filter(None, gone.values()))
            log.warning("without %s, the scores of %s count as they were saved", what, path)
            depends = depends | {key: found.depends.get(key) for key in gone if gone[key]}
        if found is not None and found.depends == depends:
            self._check(found.unreadable)
            return found, False
        if self._gone:
            raise self._gone
        return Scores.of(self.clips, self._score(protocol, change, known), depends), True

    def path(self, name):
        """The file of scores, see :meth:`scores`."""
        return self.run.folder / "scores" / f"{name}.npz"

    def keep(self, name, scores):
        """Writes scores into the run's folder, see :meth:`scores`; raises OSError where it cannot be written."""
        from keras_stss.training.saving.files import replacing

        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            scores.save(unfinished)
        with replacing(path.with_suffix(".csv")) as unfinished:
            scores.save_csv(unfinished, self.labels)

    def _check(self, unreadable):
        """Raises DataError where too many clips are left out."""
        from keras_stss.data.pipeline import Unreadable

        if self.clips:
            registry = Unreadable(self.clips, self.config.data.max_unreadable)
            registry.restore(unreadable)
            registry.check()

    def _score(self, protocol, change, known):
        import numpy as np

        from keras_stss.data.annotations import DataError
        from keras_stss.evaluation.evaluate import Scorer
        from keras_stss.models import load_model
        from keras_stss.training.showing.progress import Counter

        if self._scorer is None:
            with self.strategy.scope():
                model = load_model(self.run.folder)
            self._scorer = Scorer(model, self.strategy)
        counter = Counter(len(self.clips), "evaluated", sys.stderr)
        config = self.config
        index, logits, unreadable = self._scorer.score(
            self.clips, config.data, config.evaluate.batch_size, counter, protocol=protocol, change=change, known=known
        )
        finite = np.isfinite(logits).all(axis=1)
        if not finite.any():
            raise DataError(
                f"{self.run.best} gives no finite score (NaN or infinity) for any of {len(finite)} clips: "
                "its weights are at fault, not the clips"
            )
        places = (self.clips[each].place for each in index[~finite])
        unreadable |= dict.fromkeys(places, "the model's scores of it are not finite (NaN or infinity)")
        self._check(unreadable)
        return index[finite], logits[finite], unreadable


def open_runs(options, protocol):
    """The runs that a command line names, each opened and checked, whose labels must be the same.

    Returns:
        List of :class:`OpenedRun`.
    """
    from keras_stss.training.saving.run import check_same_labels

    split_overrides(options)
    strategy = make_test_strategy(options.devices)
    runs = [OpenedRun(folder, options.overrides, strategy) for folder in options.runs]
    check_same_labels(runs, "such runs cannot be compared or averaged")
    protocol.check(runs[0].labels)
    return runs
