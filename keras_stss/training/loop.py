"""The run: from a config to a trained model, continued where it was killed."""

import json
import logging
import math
import os
import re
import sys
import time
from pathlib import Path

import keras
import tensorflow as tf

from keras_stss.config import ConfigError
from keras_stss.data.annotations import groups, read_annotations, storage
from keras_stss.data.pipeline import Unreadable, training_stream
from keras_stss.evaluation.evaluate import Scorer, evaluate
from keras_stss.models import build_model, load_model, load_pretrained, transfer_weights
from keras_stss.ops.dispatch import log_native_status
from keras_stss.training.checkpoint import Checkpoints
from keras_stss.training.distribute import average_statistics, make_strategy
from keras_stss.training.optimizer import MomentumSGD, learning_rate
from keras_stss.training.progress import Counter, ProgressLine
from keras_stss.training.run import Run, write_atomically
from keras_stss.training.step import make_step

log = logging.getLogger(__name__)

#: mixed_float16: a loss that stays infinite or NaN for so many steps is no passing overflow.
PATIENCE = 20


class TrainingDiverged(RuntimeError):
    """The loss is no number any more."""


def train(config, name, stream=sys.stdout):
    """Trains as the config says, or goes on with the run in its folder.

    Args:
        config: :class:`keras_stss.config.Config`.
        name: name of the config, which names the run's folder where ``train.run`` does not.
        stream: text stream for the progress.

    Returns:
        The last line of the run's metrics.jsonl, with ``"run"``, its folder; with ``data.holdout: each`` a list of
        them, a group each, which is also written to folds.json.

    Raises:
        ConfigError, DataError: for what the user can mend. TrainingDiverged: on a loss that is no number.
    """
    folder = Path(config.train.run or Path("runs") / name)
    config = _with_absolute_paths(config)
    if config.data.holdout != "each":
        return _train_one(config, folder, stream)
    results, strategy = [], make_strategy(config.train)
    for number, group in enumerate(groups(config.data), 1):
        fold = config.model_copy(update={"data": config.data.model_copy(update={"holdout": group})})
        print(f"— testing on group {group}", file=stream, flush=True)
        plain = re.sub("[^A-Za-z0-9_.-]+", "_", group)
        name = plain if plain == group else f"{number}-{plain}"  # groups that differ never share a folder
        results.append({"holdout": group, **_train_one(fold, folder / f"holdout-{name}", stream, strategy)})
        keras.backend.clear_session()
    write_atomically(folder / "folds.json", json.dumps(results, indent=1) + "\n")
    return results


def _with_absolute_paths(config):
    """The config as its run keeps it: a run is evaluated and continued from any working directory."""
    data = config.data.model_copy(update={"root": storage.absolute(config.data.root)})
    members = tuple(_with_absolute_files(member) for member in config.model.ensemble)
    model = _with_absolute_files(config.model).model_copy(update={"ensemble": members})
    return config.model_copy(update={"data": data, "model": model})


def _with_absolute_files(network):
    files = {key: value and os.path.abspath(value) for key, value in network if key in ("init", "pretrained")}
    return network.model_copy(update=files)


def _train_one(config, folder, stream, strategy=None):
    data_set = read_annotations(config.data)
    strategy = strategy or make_strategy(config.train)
    run = Run(folder)
    run.open(config, data_set.labels)
    handler = run.log_to_file()
    try:
        return {"run": str(folder), **_Training(config, data_set, strategy, run, stream).go()}
    finally:
        logging.getLogger("keras_stss").removeHandler(handler)
        handler.close()


class _Training:
    """The state of a run in this process."""

    def __init__(self, config, data_set, strategy, run, stream):
        self.config, self.data_set, self.strategy, self.run, self.stream = config, data_set, strategy, run, stream
        # The same seed gives the same weights, dropout and stream; each clip's draws depend on its position alone.
        keras.utils.set_random_seed(config.train.seed)
        with strategy.scope():
            # A run that goes on has no need of the file that it began with.
            self.model = build_model(config, classes=len(data_set.labels), pretrained=None)
            self.optimizer = MomentumSGD(self.model.trainable_variables, config.train)
        self.step = make_step(strategy, self.model, self.optimizer, config.train)
        self.scorer = Scorer(self.model, strategy)
        self.unreadable = Unreadable(data_set.train, config.data.max_unreadable)
        self.steps_per_epoch = math.ceil(len(data_set.train) / config.train.batch_size)
        self.total_steps = self.steps_per_epoch * config.train.epochs
        variables = [*self.model.variables, *self.optimizer.variables]
        self.checkpoints = Checkpoints(run.checkpoints, variables, config.train.keep_checkpoints)
        # `sums` are those of the epoch so far; `position` is the stream's next clip.
        nothing = {"loss": 0.0, "correct": 0, "steps": 0}
        self.state = {"clips": len(data_set.train), "step": 0, "position": 0, "best": None, "sums": nothing}
        self.bad_steps = 0

    def go(self):
        restored = self.checkpoints.restore()
        if restored:
            if restored["clips"] != len(self.data_set.train):
                raise ConfigError(
                    f"{self.run.folder} was begun on {restored['clips']} training clips; the data set has "
                    f"{len(self.data_set.train)} now. Name another folder with train.run=…"
                )
            self.state = restored
            self.unreadable.restore(restored.get("unreadable", {}))
            log.info("continuing at step %d of %d", restored["step"], self.total_steps)
        elif self.config.model.pretrained:
            model = self.config.model
            load_pretrained(self.model, model.pretrained, model.pretrained_strict).log()
        elif self.config.model.init:
            self._start_from(self.config.model.init)
        self.run.keep_rows(self._epochs_done())
        if self.state["step"] >= self.total_steps:
            return self.run.last_row()
        clips = len(self.data_set.train)
        log.info(
            "%s: %d training and %d validation clips, %d classes, %s parameters, %d epochs of %d steps, %d device(s)",
            self.model.name, clips, len(self.data_set.validation), len(self.data_set.labels),
            f"{self.model.count_params():,}", self.config.train.epochs, self.steps_per_epoch,
            self.strategy.num_replicas_in_sync,
        )  # fmt: skip
        if self.config.model.insert or self.config.model.ensemble:
            log_native_status()
        with ProgressLine(self.total_steps, self.state["step"], self.stream) as progress, self.unreadable.explained():
            self.writer = tf.summary.create_file_writer(str(self.run.events))
            self._run_epochs(progress)
            self.writer.close()
        return self.run.last_row()

    def _epochs_done(self):
        return self.state["step"] // self.steps_per_epoch

    def _start_from(self, source):
        copied, kept = transfer_weights(load_model(source), self.model)
        log.info("started from %s: %d tensors taken over, %d kept: %s", source, copied, len(kept), ", ".join(kept[:6]))

    def _run_epochs(self, progress):
        train, data = self.config.train, self.config.data
        stream = training_stream(
            self.data_set.train, self.data_set.labels, data, train.batch_size, train.seed,
            start=self.state["position"], registry=self.unreadable,
        )  # fmt: skip
        batches = iter(self.strategy.experimental_distribute_dataset(stream))
        began, clips = time.monotonic(), 0
        while self.state["step"] < self.total_steps:
            self._one_step(next(batches), progress)
            clips += train.batch_size
            step = self.state["step"]
            ended = step % self.steps_per_epoch == 0
            if ended:
                rate = clips / (time.monotonic() - began)
                self._end_epoch(progress, rate)
                began, clips = time.monotonic(), 0
            if ended or step % train.checkpoint_steps == 0:
                average_statistics(self.model)
                self.checkpoints.save(step, self.state | {"unreadable": self.unreadable.reasons})

    def _one_step(self, batch, progress):
        state, train = self.state, self.config.train
        rate = learning_rate(train, self.steps_per_epoch, state["step"])
        loss, correct, norm, updated = self.step(batch, tf.constant(rate, tf.float32))
        loss, correct = float(loss), int(correct)
        self._check(loss, bool(updated), rate)
        positions = self.strategy.experimental_local_results(batch["position"])
        state["position"] = max(int(tf.reduce_max(part)) for part in positions) + 1
        state["step"] += 1
        sums = state["sums"]
        sums["loss"] += loss if math.isfinite(loss) else 0.0  # a step that loss scaling skips
        sums["correct"] += correct
        sums["steps"] += 1
        epoch = min((state["step"] - 1) // self.steps_per_epoch + 1, train.epochs)
        clips = sums["steps"] * train.batch_size
        progress.step(
            state["step"],
            train.batch_size,
            f"{epoch}/{train.epochs}",
            sums["loss"] / sums["steps"],
            sums["correct"] / clips,
        )
        with self.writer.as_default(state["step"]):
            tf.summary.scalar("train/loss", loss)
            tf.summary.scalar("train/learning_rate", rate)
            tf.summary.scalar("train/gradient_norm", float(norm))
        self.unreadable.check()

    def _check(self, loss, updated, rate):
        """Stops on a loss or gradient that is no number; mixed_float16 skips such steps and shrinks its scale first."""
        if math.isfinite(loss) and updated:
            self.bad_steps = 0
            return
        self.bad_steps = self.bad_steps + 1
        if self.config.train.precision == "mixed_float16" and self.bad_steps < PATIENCE:
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
        files = self.checkpoints.files()
        raise TrainingDiverged(
            f"{what} at step {self.state['step'] + 1} (learning rate {rate:g}). "
            + (f"The last good checkpoint is {files[-1]}. " if files else "No checkpoint was written before. ")
            + "A lower train.learning_rate, more train.schedule.warmup_epochs or a smaller train.clip_norm may help; "
            "give the new settings a folder of their own with train.run=…"
        )

    def _end_epoch(self, progress, clips_per_second):
        state, train = self.state, self.config.train
        epoch, sums = self._epochs_done(), state["sums"]
        row = {
            "epoch": epoch,
            "step": state["step"],
            "learning_rate": learning_rate(train, self.steps_per_epoch, state["step"] - 1),
            "train_loss": sums["loss"] / sums["steps"],
            "train_top1": sums["correct"] / (sums["steps"] * train.batch_size),
            "clips_per_second": clips_per_second,
            "unreadable": len(self.unreadable.reasons),
        }
        state["sums"] = {"loss": 0.0, "correct": 0, "steps": 0}
        if epoch % self.config.evaluate.every == 0 or epoch == train.epochs:
            row |= self._evaluate(progress, epoch)
        self.run.add_row(row)
        with self.writer.as_default(state["step"]):
            for key, value in row.items():
                tf.summary.scalar(f"epoch/{key}", value)
        progress.say(_row_text(row, train.epochs))

    def _evaluate(self, progress, epoch):
        average_statistics(self.model)
        clips, config = self.data_set.validation, self.config
        counter = Counter(len(clips), "evaluated", self.stream)
        figures, _ = evaluate(
            self.scorer, clips, self.data_set.labels, config.data, config.evaluate.batch_size, counter
        )
        best = self.state["best"]
        # Where a group is held out to measure on it, its clips must not choose the epoch: the last one counts.
        if best is None or config.data.holdout or figures["top1"] > best["top1"]:
            self.run.save_best(self.model)
            self.state["best"] = {"epoch": epoch, "top1": figures["top1"]}
        row = {f"val_{key}": figures[key] for key in ("top1", "top5", "mean_class", "loss", "clips")}
        return row | {"val_unreadable": len(figures["unreadable"]), "best_epoch": self.state["best"]["epoch"]}


def _row_text(row, epochs):
    text = f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.3f}, top-1 {row['train_top1']:.1%}"
    if "val_top1" in row:
        text += f"; validation top-1 {row['val_top1']:.1%}, top-5 {row['val_top5']:.1%}, loss {row['val_loss']:.3f}"
        if row["val_unreadable"]:
            text += f" ({row['val_unreadable']} unreadable clips left out)"
    return f"{text}; {row['clips_per_second']:.1f} clips/s"
