"""One step of training on all devices of a strategy."""

from typing import NamedTuple

import tensorflow as tf

from keras_stss.config import ConfigError
from keras_stss.training.losses import cross_entropy, global_total, twins


class Figures(NamedTuple):
    """What a step says of the global batch.

    Attributes:
        loss: mean over the clips.
        correct: number of clips whose largest logit is that of their label.
        norm: of the gradient over all weights, before it is clipped.
        updated: whether the weights were; not where the norm is not finite.
        stop: number of replicas whose worker gave a ``stop`` above 0.
    """

    loss: float
    correct: float
    norm: float
    updated: bool
    stop: float

    @classmethod
    def read(cls, values):
        """Of what a step returned; waits until the devices have it."""
        loss, correct, norm, updated, stop = values.numpy().tolist()
        return cls(loss, correct, norm, bool(updated), stop)


def make_step(strategy, model, optimizer, train):
    """Compiles the training step.

    Each device computes the gradient of its share of the batch, in ``train.accumulate`` parts one after another; the
    sums over all devices make one update. Batch normalisation keeps its statistics where the step is not finite.

    Args:
        strategy: ``tf.distribute.Strategy``; model and optimizer were made in its scope.
        model: from uint8 frames to logits.
        optimizer: :class:`keras_stss.training.optimizer.MomentumSGD`.
        train: :class:`keras_stss.config.TrainConfig`.

    Returns:
        Function (batch, rate, stop) → tensor that :meth:`Figures.read` takes, all in one so that they come from the
        devices at once. The batch is one of :func:`keras_stss.data.pipeline.training_stream`. With Twins Training, both
        views of a clip run through the network in one batch, and the first one counts for ``correct``.

    Raises:
        ConfigError: where the settings do not go together on these devices.
    """
    replicas = strategy.num_replicas_in_sync
    if train.batch_size % (replicas * train.accumulate):
        raise ConfigError(
            "train.batch_size must be a multiple of the number of devices times train.accumulate. "
            f"Received: {train.batch_size} clips for {replicas} device(s), accumulate={train.accumulate}"
        )
    if train.xla and train.twins and replicas > 1:
        raise ConfigError(
            "XLA cannot compile the exchange of train.twins between devices: set train.xla=false or train on one device"
        )
    share = _Share(model, optimizer, train, replicas)

    def replica_step(batch, scale, stop):
        context = tf.distribute.get_replica_context()
        truth = batch.get("target", batch["label"])
        before = [tf.convert_to_tensor(variable) for variable in share.statistics]
        gradients, loss, correct = share(batch["frames"], truth, batch["label"], scale)
        # What comes from outside has no device here, which the exchange between workers needs.
        local = [*gradients, loss, correct, tf.identity(stop)]
        *gradients, loss, correct, stop = context.all_reduce("SUM", local)
        if optimizer.scaled:
            gradients = [gradient / scale for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        is_good = tf.math.is_finite(norm)
        for variable, old in zip(share.statistics, before, strict=True):
            variable.assign(tf.where(is_good, variable, old))
        return gradients, (loss, correct, norm, stop)

    @tf.function(autograph=False)
    def step(batch, rate, stop):
        scale = tf.convert_to_tensor(optimizer.scale)
        gradients, figures = strategy.run(replica_step, args=(batch, scale, stop))
        loss, correct, norm, stop = (strategy.experimental_local_results(value)[0] for value in figures)
        updated = optimizer.apply(strategy, gradients, norm, rate)
        return tf.stack(list(Figures(loss, correct, norm, tf.cast(updated, tf.float32), stop)))

    return step


class _Share:
    """Gradient, loss and number of right answers of one device's share of a batch, not yet summed over devices."""

    def __init__(self, model, optimizer, train, replicas):
        self.model, self.parameters, self.train, self.replicas = model, optimizer.parameters, train, replicas
        self.statistics = [
            variable
            for variable in model.non_trainable_variables
            if variable.dtype.startswith("float") and "moving" in variable.path
        ]
        self.compute = tf.function(self._part, autograph=False, jit_compile=True) if train.xla else self._part

    def __call__(self, frames, truth, labels, scale):
        count = self.train.accumulate
        if count == 1:
            return self.compute(frames, truth, labels, scale)
        inputs = [tf.reshape(value, [count, -1, *value.shape[1:]]) for value in (frames, truth, labels)]
        sums = ([tf.zeros(each.shape, each.dtype) for each in self.parameters], tf.zeros([]), tf.zeros([]))

        def add_part(number, sums):
            part = self.compute(*(value[number] for value in inputs), scale)
            return number + 1, tf.nest.map_structure(tf.add, sums, part)

        # One after another: what each part holds for its gradient is freed before the next.
        going_on = lambda number, _: number < count  # noqa: E731
        return tf.while_loop(going_on, add_part, (0, sums), parallel_iterations=1, maximum_iterations=count)[1]

    def _part(self, frames, truth, labels, scale):
        with tf.GradientTape() as tape:
            loss, extra, logits = self._losses(frames, truth)
            scaled = (loss + extra) * scale
        gradients = tape.gradient(scaled, self.parameters)
        correct = tf.reduce_sum(tf.cast(tf.argmax(logits, -1, labels.dtype) == labels, tf.float32))
        # Every device has the whole of what was computed over all of them; the sum is to have it once.
        return gradients, loss + extra / self.replicas, correct

    def _losses(self, frames, truth):
        """(this share's part of the batch's mean loss, loss over all devices' clips, logits)."""
        train = self.train
        if train.twins is None:
            logits = self.model(frames, training=True)  # (b, K)
            loss = tf.reduce_sum(cross_entropy(logits, truth, train.label_smoothing)) / train.batch_size
            return loss, tf.zeros([]), logits
        views = tf.concat([frames[:, 0], frames[:, 1]], 0)  # (2b, T, H, W, 3)
        first, second = tf.split(self.model(views, training=True), 2)
        losses = [cross_entropy(logits, truth, train.label_smoothing) for logits in (first, second)]
        loss = 0.5 * tf.reduce_sum(tf.add(*losses)) / train.batch_size
        total = global_total(tf.distribute.get_replica_context()) if self.replicas > 1 else tf.identity
        return loss, train.twins.weight * twins(first, second, train.twins.beta, total), first
