"""The run: from a config to a trained model, continued where it was killed."""

import contextlib
import json
import logging
import math
import os
import re
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_stss.config import ConfigError
from keras_stss.data.annotations import groups, read_annotations, storage
from keras_stss.data.augment import Mix
from keras_stss.data.pipeline import Unreadable, next_position, training_stream
from keras_stss.evaluation.evaluate import Scorer, evaluate
from keras_stss.evaluation.metrics import class_accuracies
from keras_stss.models import build_model, load_model, load_pretrained, transfer_weights
from keras_stss.ops.dispatch import log_native_status
from keras_stss.training.agree import check_same_data, on_chief
from keras_stss.training.batch_norm import check_frozen, ordinary, prepare_batch_norm, statistics
from keras_stss.training.groups import parameter_groups
from keras_stss.training.optimizer import MomentumSGD, learning_rate, unreached
from keras_stss.training.saving.checkpoint import Checkpoints
from keras_stss.training.saving.files import write_atomically
from keras_stss.training.saving.run import Run, is_better
from keras_stss.training.showing.board import Board
from keras_stss.training.showing.pictures import draw
from keras_stss.training.showing.progress import ProgressLine
from keras_stss.training.showing.summary import plot_run
from keras_stss.training.step import Figures, make_step
from keras_stss.training.workers.distribute import (
    average_statistics,
    broadcast,
    components,
    from_chief,
    gather,
    is_chief,
    lost_workers_told,
    make_strategy,
    spread_seeds,
    training_batches,
    workers,
)
from keras_stss.training.workers.preempt import Preempted, Preemption
from keras_stss.training.workers.supervise import all_end, restarted

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
        ConfigError, DataError: for what the user can mend. TrainingDiverged: on a loss that is no number. Preempted:
            after a signal to stop, once the state is saved. WorkerLost: where another worker has gone.
    """
    folder = Path(config.train.run or Path("runs") / name)
    config = with_absolute_paths(config)
    strategy = make_strategy(config.train)
    with lost_workers_told(strategy):
        if config.data.holdout == "each":
            return _train_each(config, folder, stream, strategy)
        return _train_one(config, folder, stream, strategy)


def _train_each(config, folder, stream, strategy):
    """A run for each group of clips, which is held out."""
    results = []
    for number, group in enumerate(groups(config.data), 1):
        fold = config.model_copy(update={"data": config.data.model_copy(update={"holdout": group})})
        print(f"— testing on group {group}", file=stream, flush=True)
        plain = re.sub("[^A-Za-z0-9_.-]+", "_", group)
        name = plain if plain == group else f"{number}-{plain}"  # groups that differ never share a folder
        results.append({"holdout": group, **_train_one(fold, folder / f"holdout-{name}", stream, strategy)})
        keras.backend.clear_session()
    if is_chief(strategy):
        write_atomically(folder / "folds.json", json.dumps(results, indent=1) + "\n")
    return results


def with_absolute_paths(config):
    """The config as its run keeps it, so that a run is evaluated and continued from any working directory."""
    data = config.data.model_copy(update={"root": storage.absolute(config.data.root)})
    members = tuple(_with_absolute_files(member) for member in config.model.ensemble)
    model = _with_absolute_files(config.model).model_copy(update={"ensemble": members})
    return config.model_copy(update={"data": data, "model": model})


def _with_absolute_files(network):
    files = {key: value and os.path.abspath(value) for key, value in network if key in ("init", "pretrained")}
    return network.model_copy(update=files)


def _train_one(config, folder, stream, strategy):
    with contextlib.ExitStack() as stack:
        preemption = stack.enter_context(Preemption())
        data_set = read_annotations(config.data)
        run = Run(folder)
        check_same_data(strategy, data_set)
        on_chief(strategy, lambda: stack.enter_context(run.claimed()))
        # A worker that was started again goes on, whatever the user wants of a new run.
        on_chief(strategy, lambda: run.open(config, data_set.labels, "auto" if restarted() else None))
        if is_chief(strategy):
            stack.enter_context(run.logged())
        else:
            stream = stack.enter_context(open(os.devnull, "w"))
        return {"run": str(folder), **Training(config, data_set, strategy, run, stream, preemption).go()}


class Training:
    """A run in this process.

    Args:
        config: :class:`keras_stss.config.Config`.
        data_set: clips and labels, as :func:`keras_stss.data.annotations.read_annotations` gives them.
        strategy: ``tf.distribute.Strategy``.
        run: :class:`keras_stss.training.saving.run.Run`, opened.
        stream: text stream for the progress.
        preemption: :class:`keras_stss.training.workers.preempt.Preemption`, entered; None looks at no signals.
        total_steps: where the run ends (default: after ``train.epochs``).

    Attributes:
        model: the network, before its first step.
        step: what :func:`keras_stss.training.step.make_step` made; may be wrapped before :meth:`go`.
    """

    def __init__(self, config, data_set, strategy, run, stream, preemption=None, total_steps=None):
        self.config, self.data_set, self.strategy, self.run, self.stream = config, data_set, strategy, run, stream
        self.is_chief = is_chief(strategy)
        # This worker's part of each batch; None where it is the only worker.
        self.shard = workers(strategy) if workers(strategy)[1] > 1 else None
        # The same seed gives the same weights, dropout and stream; each clip's draws depend on its position alone.
        keras.utils.set_random_seed(config.train.seed)
        with strategy.scope():
            # A run that goes on has no need of the file that it began with.
            self.model = build_model(config, classes=len(data_set.labels), pretrained=None)
            prepare_batch_norm(self.model, config.train)
            groups = parameter_groups(self.model, config.train)
            self.optimizer = MomentumSGD(groups, config.train, statistics(self.model))
        self.step = make_step(strategy, self.model, self.optimizer, config.train)
        self.scorer = Scorer(self.model, strategy)
        self.unreadable = Unreadable(data_set.train, config.data.max_unreadable)
        self.steps_per_epoch = math.ceil(len(data_set.train) / config.train.batch_size)
        self.total_steps = total_steps or self.steps_per_epoch * config.train.epochs
        self.variables = [*self.model.variables, *self.optimizer.variables]
        self.checkpoints = Checkpoints(run.checkpoints, self.variables, config.train.keep_checkpoints)
        # `sums` are those of the epoch so far; `position` is the stream's next clip.
        self.state = {"clips": len(data_set.train), "data": data_set.digest(), "step": 0, "position": 0}
        self.state["sums"] = _nothing()
        self.preemption = preemption or Preemption()
        self.pending = []  # steps that were started and not yet looked at
        self.bad_steps, self.stops, self.best, self.batch = 0, False, None, None

    def go(self):
        """Trains to the end, from the newest checkpoint where there is one; returns the last line of metrics.jsonl."""
        restored = self._restore()
        if restored:
            log.info("continuing at step %d of %d", self.state["step"], self.total_steps)
        elif self.config.model.pretrained:
            model = self.config.model
            load_pretrained(self.model, model.pretrained, model.pretrained_strict).log()
        elif self.config.model.init:
            self._start_from(self.config.model.init)
        if not restored:
            self._check_start()
        broadcast(self.strategy, self.variables)
        spread_seeds(self.strategy, self.model)
        rows = self._rows()
        is_closed = self._is_closed(rows)
        if is_closed and self.state["step"] % self.steps_per_epoch == 0:
            self.state["sums"] = _nothing()
        if is_closed and self.state["step"] >= self.total_steps:
            return rows[-1]
        self.best = self._best_of(rows)
        self._log_start()
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(ProgressLine(self.total_steps, self.state["step"], self.stream))
            stack.enter_context(self.unreadable.explained())
            self.board = (
                Board(self.run.events, self.data_set.labels, self.config.train.board) if self.is_chief else None
            )
            if self.board:
                stack.callback(self.board.close)
            if not is_closed:
                self._end_epoch(progress)  # what was stopped before the epoch's line was written
            self._run_epochs(progress)
        if self.is_chief:
            plot_run(self.run.folder)
        return self._rows()[-1]

    def _restore(self):
        """Takes up the newest checkpoint, which the chief alone needs to see; returns whether there was one."""
        restored = {}
        on_chief(self.strategy, lambda: restored.update(self.checkpoints.restore() or {}))
        restored = from_chief(self.strategy, restored)
        if restored and restored["clips"] != len(self.data_set.train):
            raise ConfigError(
                f"{self.run.folder} was begun on {restored['clips']} training clips; the data set has "
                f"{len(self.data_set.train)} now. Name another folder with train.run=…"
            )
        if restored.get("data", self.state["data"]) != self.state["data"]:  # earlier versions did not note it
            raise ConfigError(
                f"{self.run.folder} was begun on other clips: as many, but other names, parts, labels or another "
                "order of the lists. Give it its own lists, or name another folder with train.run=…"
            )
        if restored:
            self.unreadable.restore(restored.pop("unreadable", {}))
            self.state |= restored | {"sums": _nothing() | restored["sums"]}
        return bool(restored)

    def _rows(self):
        """The lines of metrics.jsonl up to the epoch that was reached, the same on all workers."""
        if self.is_chief:
            self.run.keep_rows(self.state["step"] // self.steps_per_epoch)
        return from_chief(self.strategy, self.run.rows() if self.is_chief else None)

    def _is_closed(self, rows):
        """Whether the epoch that the last step ended, if it did, has its line, and so was evaluated."""
        epoch, steps = divmod(self.state["step"], self.steps_per_epoch)
        return bool(steps) or not epoch or any(row["epoch"] == epoch for row in rows)

    def _best_of(self, rows):
        """{"epoch", "value"} of the model in best.keras, or None."""
        epochs = {row["epoch"]: row for row in rows}
        number = next((row["best_epoch"] for row in reversed(rows) if "best_epoch" in row), None)
        best = epochs.get(number)
        return best and {"epoch": number, "value": best[f"val_{self.config.train.best}"]}

    def _log_start(self):
        if not self.is_chief:
            return
        log.info(
            "%s: %d training and %d validation clips, %d classes, %s parameters, %d epochs of %d steps, %d device(s)%s",
            self.model.name, len(self.data_set.train), len(self.data_set.validation), len(self.data_set.labels),
            f"{self.model.count_params():,}", self.config.train.epochs, self.steps_per_epoch,
            self.strategy.num_replicas_in_sync, f" of {self.shard[1]} workers" if self.shard else "",
        )  # fmt: skip
        for line in unreached(self.config.train):
            log.warning("%s", line)
        if self.config.model.insert or self.config.model.ensemble:
            log_native_status()

    def _check_start(self):
        """Looks at the weights that a run begins with, which may come from a file."""
        check_frozen(self.model)
        model = self.config.model
        source = model.pretrained or model.init
        for variable in self.model.variables if source else ():
            if variable.dtype.startswith("float") and not np.isfinite(components(variable)[0]).all():
                raise ConfigError(f"{source}: {variable.path} holds values that are no numbers; name another file")

    def _start_from(self, source):
        copied, kept = transfer_weights(load_model(source), self.model)
        log.info("started from %s: %d tensors taken over, %d kept: %s", source, copied, len(kept), ", ".join(kept[:6]))

    def _run_epochs(self, progress):
        train = self.config.train
        batches = iter(training_batches(self.strategy, self._stream, train.batch_size))
        while self.state["step"] < self.total_steps:
            began = time.monotonic()
            batch = next(batches)
            self.waited = time.monotonic() - began
            self._one_step(batch, progress)
            sums = self.state["sums"]
            sums["seconds"] += time.monotonic() - began
            sums["waited"] += self.waited
            step = self.state["step"]
            ended = step % self.steps_per_epoch == 0
            with progress.pause():
                if ended or step % train.checkpoint_steps == 0 or self.stops:
                    self._save(progress)
                if self.stops:
                    raise self._preempted(f"at step {step} of {self.total_steps}")
                if ended:
                    self._end_epoch(progress)

    def _stream(self, shard=None):
        train, data = self.config.train, self.config.data
        return training_stream(
            self.data_set.train, self.data_set.labels, data, train.batch_size, train.seed,
            start=self.state["position"], registry=self.unreadable, shard=shard, views=2 if train.twins else 1,
            mix=Mix(train.mixup, train.cutmix) if train.mixup or train.cutmix else None,
        )  # fmt: skip

    def _one_step(self, batch, progress):
        """Starts a step, and looks at the one before it, so that a GPU never waits for this process."""
        state, train = self.state, self.config.train
        rate = learning_rate(train, self.steps_per_epoch, state["step"])
        if self.board:
            self.board.profile(state["step"] + 1)
        stop = tf.constant(float(self.preemption.requested), tf.float32)
        figures = self.step(batch, tf.constant(rate, tf.float32), stop)
        state["step"] += 1
        self.pending.append((state["step"], rate, self.waited, figures, batch["position"]))
        self.batch = batch
        self.stops |= self.preemption.requested and self.shard is None
        if len(self.pending) > 1:
            self._look_at(*self.pending.pop(0), progress)
        self.unreadable.check()

    def _look_at(self, step, rate, waited, figures, positions, progress):
        """Takes the figures of a step into account."""
        state, train = self.state, self.config.train
        figures, sums = Figures.read(figures), state["sums"]
        positions = np.concatenate([part.numpy() for part in self.strategy.experimental_local_results(positions)])
        state["position"] = next_position(state["position"], positions, train.batch_size, self.shard)
        self.stops = self.stops or figures.stop > 0
        self._check(step, figures.loss, figures.updated, rate)
        sums["loss"] += figures.loss if math.isfinite(figures.loss) else 0.0  # a step that loss scaling skips
        sums["correct"] += int(figures.correct)
        sums["steps"] += 1
        clips = sums["steps"] * train.batch_size
        epoch = min((step - 1) // self.steps_per_epoch + 1, train.epochs)
        progress.step(
            step, train.batch_size, f"{epoch}/{train.epochs}", sums["loss"] / sums["steps"], sums["correct"] / clips,
            waited,
        )  # fmt: skip
        if self.board:
            values = {"loss": figures.loss, "learning_rate": rate, "gradient_norm": figures.norm}
            with self._board_time():
                self.board.scalars(step, {f"train/{name}": value for name, value in values.items()})

    @contextlib.contextmanager
    def _board_time(self):
        """Around what TensorBoard takes."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.state["sums"]["board"] += time.monotonic() - began

    def _check(self, step, loss, updated, rate):
        """Stops on a loss or gradient that is no number; mixed_float16 skips such steps and shrinks its scale first."""
        if math.isfinite(loss) and updated:
            self.bad_steps = 0
            return
        self.bad_steps = self.bad_steps + 1
        if self.config.train.precision == "mixed_float16" and self.bad_steps < PATIENCE:
            return
        all_end()  # loss and gradient are those of the global batch
        what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
        raise TrainingDiverged(
            f"{what} at step {step} (learning rate {rate:g}). {self._last_file()} "
            "A lower train.learning_rate, more train.schedule.warmup_epochs or a smaller train.clip_norm may help; "
            "give the new settings a folder of their own with train.run=…"
        )

    def _preempted(self, when):
        signal, files = self.preemption.signal or "a signal to another worker", self.checkpoints.files()
        whence = f" from {files[-1]}" if files else ""
        return Preempted(f"stopped by {signal} {when}; the same command goes on{whence}")

    def _last_file(self):
        files = self.checkpoints.files()
        return f"The last good checkpoint is {files[-1]}." if files else "No checkpoint was written before."

    def _save(self, progress):
        """Writes a checkpoint of all steps that were started."""
        while self.pending:
            self._look_at(*self.pending.pop(0), progress)
        average_statistics(self.strategy, self.model, self.optimizer.statistics)
        reasons = {}
        for part in gather(self.strategy, self.unreadable.reasons):
            reasons |= part
        self.unreadable.restore(reasons)
        state = self.state | {"unreadable": reasons}
        on_chief(self.strategy, lambda: self.checkpoints.save(state["step"], state))

    def _end_epoch(self, progress):
        """Evaluates, and writes the epoch's line; the checkpoint of its last step is there already."""
        state, train, sums = self.state, self.config.train, self.state["sums"]
        epoch = state["step"] // self.steps_per_epoch
        row = {
            "epoch": epoch,
            "step": state["step"],
            "learning_rate": learning_rate(train, self.steps_per_epoch, state["step"] - 1),
            "train_loss": sums["loss"] / max(sums["steps"], 1),
            "train_top1": sums["correct"] / max(sums["steps"] * train.batch_size, 1),
            "clips_per_second": sums["steps"] * train.batch_size / max(sums["seconds"], 1e-9),
            "wait_share": sums["waited"] / max(sums["seconds"], 1e-9),
            "unreadable": len(self.unreadable.reasons),
        }
        by_class = None
        if epoch % self.config.evaluate.every == 0 or epoch == train.epochs:
            figures, by_class = self._evaluate(epoch, progress)
            row |= figures
        row["board_share"] = sums["board"] / max(sums["seconds"], 1e-9)
        state["sums"] = _nothing()
        on_chief(self.strategy, lambda: self.run.add_row(row))
        progress.say(_row_text(row, train.epochs))
        if self.board:
            with self._board_time():  # of the next epoch: the line is written
                self.board.epoch(state["step"], row, by_class)

    def _evaluate(self, epoch, progress):
        """(figures for the epoch's line, accuracy of each class)."""
        config, labels = self.config, self.data_set.labels
        counter = self._counting(progress.counter(len(self.data_set.validation), "evaluated"))
        with self.optimizer.averaged():
            average_statistics(self.strategy, self.model)
            figures, scores = evaluate(
                self.scorer, self.data_set.validation, labels, config.data, config.evaluate.batch_size, counter
            )
            # Where a group is held out to measure on it, its clips must not choose the epoch: the last one counts.
            value, before = figures[config.train.best], self.best and self.best["value"]
            if config.data.holdout or is_better(config.train.best, value, before):
                with ordinary(self.model):
                    on_chief(self.strategy, lambda: self.run.save_best(self.model))
                self.best = {"epoch": epoch, "value": value}
            if self.board and epoch % config.train.board.every == 0:
                batch = self.batch and {
                    key: self.strategy.experimental_local_results(self.batch[key])[0] for key in self.batch
                }
                with self._board_time():
                    draw(self.board, self.state["step"], self.model, self.data_set, config, batch, scores)
        row = {f"val_{key}": figures[key] for key in ("top1", "top5", "mean_class", "loss", "clips")}
        row |= {"val_unreadable": len(figures["unreadable"]), "best_epoch": self.best["epoch"]}
        return row, class_accuracies(scores["logits"], scores["label"], len(labels))

    def _counting(self, counter):
        """Counts clips, and leaves an evaluation on a signal: the checkpoint before it is there."""

        def count(done):
            counter(done)
            # Of several workers, one alone must not leave; the next step tells all of them.
            if self.preemption.requested and self.shard is None:
                raise self._preempted("while evaluating")

        return count


def _nothing():
    """The sums of an epoch at its beginning."""
    return {"loss": 0.0, "correct": 0, "steps": 0, "seconds": 0.0, "waited": 0.0, "board": 0.0}


def _row_text(row, epochs):
    text = f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.3f}, top-1 {row['train_top1']:.1%}"
    if "val_top1" in row:
        text += f"; validation top-1 {row['val_top1']:.1%}, top-5 {row['val_top5']:.1%}, loss {row['val_loss']:.3f}"
        if row["val_unreadable"]:
            text += f" ({row['val_unreadable']} unreadable clips left out)"
    text += f"; {row['clips_per_second']:.1f} clips/s, waited {row['wait_share']:.1%} of the time for data"
    return f"{text}, TensorBoard {row['board_share']:.1%}"
