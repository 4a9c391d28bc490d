"""A rehearsal of a run: two steps of everything that it will do, with its own config, before days go into it."""

import contextlib
import dataclasses
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import keras
import tensorflow as tf

from keras_stss.config import ConfigError
from keras_stss.data.annotations import groups, read_annotations
from keras_stss.training.agree import check_same_data, on_chief
from keras_stss.training.groups import describe, parameter_groups
from keras_stss.training.loop import Training, with_absolute_paths
from keras_stss.training.saving.run import Run
from keras_stss.training.step import Figures
from keras_stss.training.workers.distribute import is_chief, lost_workers_told, make_strategy
from keras_stss.training.workers.preempt import clearing_away

#: Steps before the run is left, and again after it was taken up.
STEPS = 2


class RehearsalFailed(RuntimeError):
    """Something came out otherwise than it has to, though nothing has failed by itself."""


def rehearse(config, name, export, stream=sys.stdout):
    """Trains two steps, evaluates, writes a checkpoint, goes on from it for two more, and exports; keeps none of it.

    Model, batch, frames, pixels, precision and devices are the config's own: where they are too much for a machine,
    this fails as the run would. Only the lists are cut, to two steps of training clips and two of validation clips, and
    evaluation and pictures come after each of these short epochs. Everything that ran is printed, as it comes.

    Args:
        config: :class:`keras_stss.config.Config`. With ``data.holdout: each`` the first group is held out.
        name: name of the config, as for :func:`keras_stss.training.loop.train`.
        export: function (run folder, folder), such as :func:`keras_stss.export.export_run`.
        stream: text stream for the report.

    Returns:
        dict that JSON can hold: ``clips``, those of the data set and those that were taken; ``step``, what one of them
        holds; ``groups`` of weights; ``steps``, their losses, gradient norms and seconds; ``memory`` in bytes;
        ``checkpoint`` and ``export`` in bytes; ``hours``, of the whole training at the speed of the second step.

    Raises:
        ConfigError, DataError: for what the user can mend. RehearsalFailed: where the run did not go on.
    """
    folder = Path(config.train.run or Path("runs") / name)
    config = with_absolute_paths(config)
    strategy = make_strategy(config.train)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lost_workers_told(strategy))
        stack.enter_context(clearing_away())
        parent = None  # of workers that are not to have the run's folder: where temporary files go
        if is_chief(strategy):
            parent = folder.parent  # on the disk that the run is going to fill
            parent.mkdir(parents=True, exist_ok=True)
        else:
            stream = stack.enter_context(open(os.devnull, "w"))
        scratch = tempfile.mkdtemp(prefix=f".rehearsal-{name}-", dir=parent)
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        return _Rehearsal(config, strategy, Path(scratch), stream).go(export)


class _Rehearsal:
    """The parts of a rehearsal, one after another, and the report that they add to."""

    def __init__(self, config, strategy, scratch, stream):
        if config.data.holdout == "each":
            first = groups(config.data)[0]
            config = config.model_copy(update={"data": config.data.model_copy(update={"holdout": first})})
        self.strategy, self.scratch, self.stream = strategy, scratch, stream
        self.run, self.report = Run(scratch / "run"), {"steps": []}
        self.config = _looking_often(config)
        whole = read_annotations(config.data)
        check_same_data(strategy, whole)
        self.data_set = _cut(whole, STEPS * config.train.batch_size, STEPS * config.evaluate.batch_size)
        self.total_steps = -(-len(whole.train) // config.train.batch_size) * config.train.epochs
        self._tell_data(whole)

    def go(self, export):
        self._say(f"start     {self._start()}")
        self._train(STEPS)
        self._tell_steps()
        self._tell_files()
        keras.backend.clear_session()
        taken_up = self._train(2 * STEPS)
        if taken_up != STEPS:
            raise RehearsalFailed(
                f"the run was to go on from its checkpoint for {STEPS} steps, and made {taken_up}: it began anew"
            )
        self._say(f"resume    from step {STEPS} to {2 * STEPS}: {self._losses(self.report['steps'][STEPS:])}")
        if is_chief(self.strategy):
            self._export(export)
        self._say("nothing of it was kept; the run itself will train, evaluate, resume and export in this way")
        return self.report

    def _train(self, until):
        """Trains, or goes on, until a number of steps is done; returns how many that took."""
        train, timed = self.config.train, []
        on_chief(self.strategy, lambda: self.run.open(self.config, self.data_set.labels))
        with contextlib.ExitStack() as stack:
            if is_chief(self.strategy):
                stack.enter_context(self.run.logged())
            training = Training(self.config, self.data_set, self.strategy, self.run, self.stream, total_steps=until)
            training.step = _timed(training.step, timed)
            if not self.report["steps"]:
                self._tell_model(training)
            try:
                training.go()
            except tf.errors.ResourceExhaustedError as error:
                raise ConfigError(
                    f"a step of {train.batch_size} clips does not fit into the memory of a device "
                    f"({str(error).splitlines()[0]:.120}). train.accumulate={2 * train.accumulate} computes it in "
                    "parts, train.precision=mixed_bfloat16 needs about half the memory, and so does half of "
                    "train.batch_size, with half of train.learning_rate"
                ) from None
        self.report["steps"] += timed
        return len(timed)

    def _start(self):
        model = self.config.model
        files = [member.pretrained for member in model.ensemble if member.pretrained]
        named = model.pretrained or model.init or ", ".join(files)
        return named or "random weights: neither model.pretrained nor model.init names any"

    def _tell_data(self, whole):
        taken = self.data_set
        self.report["clips"] = {
            part: {"there": len(getattr(whole, part)), "taken": len(getattr(taken, part))}
            for part in ("train", "validation")
        }
        there, rows = self.report["clips"], ", ".join(whole.labels[:3])
        self._say(
            f"data      {there['train']['there']:,} training and {there['validation']['there']:,} validation clips of "
            f"{len(whole.labels)} classes ({rows}, …)"
        )
        self._say(
            f"cut       to {there['train']['taken']} and {there['validation']['taken']} of them, evenly spread; "
            "evaluated after each. All else is as in the run:"
        )
        data, train = self.config.data, self.config.train
        self.report["step"] = {
            "clips": train.batch_size,
            "views": 2 if train.twins else 1,
            "frames": data.frames,
            "pixels": data.crop,
            "accumulate": train.accumulate,
            "precision": train.precision,
            "devices": self.strategy.num_replicas_in_sync,
            "xla": train.xla,
        }
        self._say("step      " + ", ".join(f"{key} {value}" for key, value in self.report["step"].items()))

    def _tell_model(self, training):
        model = training.model
        self.report["parameters"] = model.count_params()
        self._say(f"model     {model.name}, {model.count_params():,} parameters; their groups:")
        found = parameter_groups(model, self.config.train)
        self.report["groups"] = [
            {"name": group.name, "tensors": len(group.variables), "rate": group.rate, "decay": group.decay}
            for group in found
        ]
        for line in describe(found):
            self._say(f"          {line}")

    def _tell_steps(self):
        first, second = self.report["steps"][:2]
        self._say(f"train     {self._losses((first, second))}")
        hours = self.total_steps * (second["seconds"] + second["waited"]) / 3600
        self.report["hours"] = hours
        length = f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
        self._say(
            f"time      {first['seconds']:.1f} s for the first step with its compilation; {second['seconds']:.2f} s "
            f"for the second and {second['waited']:.2f} s of waiting for its clips. {self.total_steps:,} such steps "
            f"take about {length}, evaluation apart"
        )
        self.report["memory"] = _memory()
        self._say("memory    at most " + ", ".join(f"{size / 1e9:.2f} GB {name}" for name, size in _memory().items()))

    def _tell_files(self):
        if not is_chief(self.strategy):
            return
        row = self.run.rows()[-1]
        self._say(f"evaluate  {row['val_clips']} clips: top-1 {row['val_top1']:.1%}, loss {row['val_loss']:.3f}")
        sizes = [path.stat().st_size for path in self.run.checkpoints.iterdir()]
        keep, free = self.config.train.keep_checkpoints, shutil.disk_usage(self.scratch).free
        self.report["checkpoint"] = max(sizes)
        wanted = (keep + 1) * max(sizes) + 2 * self.run.best.stat().st_size  # one more of each while it is written
        short = "" if free > wanted else ": TOO LITTLE, the run would stop"
        self._say(
            f"disk      {max(sizes) / 1e6:,.0f} MB a checkpoint, of which {keep} are kept: the run needs "
            f"{wanted / 1e9:.2f} GB and its tables; {free / 1e9:.2f} GB are free{short}"
        )

    def _export(self, export):
        export(self.run.folder, self.scratch / "export" / "1")
        files = [path for path in (self.scratch / "export").rglob("*") if path.is_file()]
        self.report["export"] = sum(path.stat().st_size for path in files)
        self._say(f"export    {self.report['export'] / 1e6:,.0f} MB, the same probabilities as the model's")

    @staticmethod
    def _losses(steps):
        return ", then ".join(f"loss {step['loss']:.3f} (gradient norm {step['norm']:.3g})" for step in steps)

    def _say(self, text):
        print(text, file=self.stream, flush=True)


def _looking_often(config):
    """The config with an evaluation, and pictures, after each of the short epochs, and free to go on."""
    board = config.train.board.model_copy(update={"every": 1})
    return config.model_copy(
        update={
            "train": config.train.model_copy(update={"board": board, "resume": "auto"}),
            "evaluate": config.evaluate.model_copy(update={"every": 1}),
        }
    )


def _cut(data_set, train, validation):
    """The data set with so many clips at most, evenly spread over its classes and lists."""

    def spread(clips, count):
        if len(clips) <= count:
            return clips
        # By class: where the classes of a list take turns, every so many clips may be one class alone.
        clips = sorted(clips, key=lambda clip: clip.label)
        return [clips[number * len(clips) // count] for number in range(count)]

    return dataclasses.replace(
        data_set, train=spread(data_set.train, train), validation=spread(data_set.validation, validation)
    )


def _timed(step, times):
    """The step, waited for, with its loss, gradient norm and seconds, and those since the one before, noted."""
    ended = None

    def run(*arguments):
        nonlocal ended
        began = time.monotonic()
        figures = step(*arguments)
        loss, _, norm, *_ = Figures.read(figures)
        waited, ended = began - (ended or began), time.monotonic()
        times.append({"loss": loss, "norm": norm, "seconds": ended - began, "waited": waited})
        return figures

    return run


def _memory():
    """{where: most bytes so far}."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"of the machine's memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    for device in tf.config.list_logical_devices("GPU"):
        name = device.name.removeprefix("/device:")
        found[f"on {name}"] = tf.config.experimental.get_memory_info(name)["peak"]
    return found
