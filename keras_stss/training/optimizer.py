"""The papers' optimizer and learning-rate schedules."""

import bisect
import contextlib
import math

import tensorflow as tf

from keras_stss.training.workers.distribute import components

#: Dynamic loss scaling of mixed_float16: start, and steps without overflow before the scale is doubled.
INITIAL_SCALE = 2.0**15
GROWTH_STEPS = 2000
#: Moving averages: after n steps the next one counts 1 / (1 + n / WARM_UP), until `ema` asks for less.
WARM_UP = 10.0


def learning_rate(train, steps_per_epoch, step):
    """Learning rate of a step.

    Args:
        train: :class:`keras_stss.config.TrainConfig`.
        steps_per_epoch: steps an epoch.
        step: number of steps already done.

    Returns:
        The rate: a linear rise over ``warmup_epochs``, then ``learning_rate`` multiplied by ``gamma`` after every
        milestone, or half a cosine down to zero at the last step (Loshchilov & Hutter, ICLR 2017).
    """
    schedule, epoch = train.schedule, step / steps_per_epoch
    if epoch < schedule.warmup_epochs:
        return train.learning_rate * (step + 1) / math.ceil(schedule.warmup_epochs * steps_per_epoch)
    if schedule.kind == "step":
        return train.learning_rate * schedule.gamma ** bisect.bisect_right(schedule.milestones, epoch)
    left = train.epochs - schedule.warmup_epochs
    progress = min((epoch - schedule.warmup_epochs) / left, 1.0) if left > 0 else 1.0
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def unreached(train):
    """What of a schedule lies behind the last epoch.

    Args:
        train: :class:`keras_stss.config.TrainConfig`.

    Returns:
        A list of lines for the user; empty where the run reaches all of it.
    """
    schedule, lines = train.schedule, []
    if late := [f"{milestone:g}" for milestone in schedule.milestones if milestone >= train.epochs]:
        lines.append(
            f"train.schedule.milestones: {', '.join(late)} lie behind the last of {train.epochs} epochs, so the rate "
            f"falls {len(schedule.milestones) - len(late)} time(s); shorten them with train.epochs"
        )
    if schedule.warmup_epochs >= train.epochs:
        lines.append(
            f"train.schedule.warmup_epochs: the rise takes {schedule.warmup_epochs:g} of {train.epochs} epochs, so "
            "nothing comes after it; shorten it with train.epochs"
        )
    return lines


class MomentumSGD:
    """SGD with (Nesterov) momentum as the papers' code has it, which Keras' SGD is not.

    The gradient is clipped by its global norm; then g ← g + decay·w; b ← momentum·b + g;
    w ← w - rate·(g + momentum·b), or w - rate·b without Nesterov. The rate is outside the momentum, so a drop of the
    rate acts at once; weight decay goes through the momentum. Each group of weights has its own decay and factor of the
    rate. A step whose gradient is not finite changes nothing but the loss scale, in any precision.

    With ``train.ema`` a moving average of the weights is kept: a ← a + (1 - d)·(w - a) after each step, with
    d = min(ema, n / (n + 10)) after n steps before. So it starts as the weights of the first step, whatever they were
    when this was made, and covers about the last tenth of the run while that is shorter than what ``ema`` asks for.
    The statistics of batch normalisation, which belong to the weights, are averaged with them.

    Args:
        groups: list of :class:`keras_stss.training.groups.Group`. Create the optimizer in the strategy's scope.
        train: :class:`keras_stss.config.TrainConfig`.
        statistics: the model's variables that are averaged beside the weights, see
            :func:`keras_stss.training.batch_norm.statistics`.

    Attributes:
        parameters: TensorFlow's variables of the weights, in the model's order, in which gradients are given.
        variables: the optimizer's whole state, for a checkpoint.
    """

    def __init__(self, groups, train, statistics=()):
        members = [
            (place, variable, group) for group in groups for place, variable in zip(group.places, group.variables)
        ]
        members.sort(key=lambda member: member[0])
        self.parameters = [variable.value for _, variable, _ in members]
        self.decays = [group.decay for _, _, group in members]
        self.rates = [group.rate for _, _, group in members]
        self.train = train
        self.velocities = [_state(tf.zeros(p.shape, p.dtype), f"velocity_{i}") for i, p in enumerate(self.parameters)]
        self.scaled = train.precision == "mixed_float16"
        self.scale = _state(INITIAL_SCALE if self.scaled else 1.0, "loss_scale")
        self.good_steps = _state(0, "good_steps")
        self.averages = Averages([*self.parameters, *(each.value for each in statistics)], train.ema)

    @property
    def variables(self):
        return [*self.velocities, self.scale, self.good_steps, *self.averages.variables]

    @property
    def statistics(self):
        """Averages of statistics that each replica takes of its own clips; empty without ``train.ema``."""
        return self.averages.shadows[len(self.parameters) :]

    def averaged(self):
        """Context manager: the model has the averaged weights inside it; without ``train.ema`` nothing happens."""
        return self.averages.in_place()

    def apply(self, strategy, gradients, norm, rate):
        """One update, called in the cross-replica context.

        Args:
            strategy: the ``tf.distribute.Strategy`` in whose scope this was created.
            gradients: a tensor a parameter, already summed over replicas and divided by the loss scale.
            norm: their global norm, a scalar; where it is not finite, nothing is updated.
            rate: learning rate, a scalar.

        Returns:
            Whether the parameters were updated, a boolean scalar.
        """
        finite = tf.math.is_finite(norm)
        shrink = 1.0 if self.train.clip_norm is None else self.train.clip_norm / tf.maximum(norm, self.train.clip_norm)
        # No branch, for which the host would wait until a GPU has the norm: factors that leave everything as it is.
        shrink, rate = (tf.where(finite, factor, 0.0) for factor in (shrink, rate))
        momentum = tf.where(finite, self.train.momentum, 1.0)
        own_rates = {factor: rate * factor for factor in set(self.rates)}
        own_decays = {decay: tf.where(finite, decay, 0.0) for decay in set(self.decays)}
        for number, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            decay = own_decays[self.decays[number]] if self.decays[number] else None
            update = _updater(self.velocities[number], self.train.nesterov)
            args = (gradient, shrink, decay, momentum, own_rates[self.rates[number]])
            strategy.extended.update(parameter, update, args=args, group=False)
        self.averages.update(strategy, finite)
        if self.scaled:
            self._adapt_scale(finite)
        return finite

    def _adapt_scale(self, finite):
        good = tf.where(finite, self.good_steps + 1, 0)
        grow = good >= GROWTH_STEPS
        self.scale.assign(tf.where(finite, tf.where(grow, self.scale * 2.0, self.scale), self.scale * 0.5))
        self.good_steps.assign(tf.where(grow, 0, good))


class Averages:
    """Moving averages of variables over the steps (see :class:`MomentumSGD`).

    Args:
        originals: TensorFlow variables of the model.
        decay: how much of the average each step keeps; None keeps no averages.
    """

    def __init__(self, originals, decay):
        self.decay = decay
        self.originals = [] if decay is None else originals
        self.shadows = [_state(tf.zeros(v.shape, v.dtype), f"average_{i}") for i, v in enumerate(self.originals)]
        self.variables = list(self.shadows)
        if self.shadows:
            self.steps = _state(tf.constant(0, tf.int64), "averaged_steps")
            self.variables.append(self.steps)

    def update(self, strategy, finite):
        """Takes the present values in where ``finite``, a boolean scalar; called in the cross-replica context."""
        if not self.shadows:
            return
        before = tf.cast(self.steps, tf.float32)
        new = tf.where(finite, tf.maximum(1.0 - self.decay, WARM_UP / (before + WARM_UP)), 0.0)
        for original, shadow in zip(self.originals, self.shadows):
            strategy.extended.update(original, self._updater(shadow), args=(new,), group=False)
        self.steps.assign_add(tf.cast(finite, self.steps.dtype))

    @staticmethod
    def _updater(shadow):
        def update(original, new):
            average = _beside(original, shadow)
            average.assign_add(tf.math.multiply_no_nan(original - average, new))

        return update

    @contextlib.contextmanager
    def in_place(self):
        """The originals have their averages' values inside it, all copies of them, and get their own back after it."""
        if not self.shadows or not int(components(self.steps)[0]):
            yield
            return
        originals = [copy for variable in self.originals for copy in components(variable)]
        shadows = [copy for variable in self.shadows for copy in components(variable)]
        # Kept apart, not swapped, so that an exception in between finds all of them.
        own = [tf.identity(original) for original in originals]
        try:
            _assign(originals, shadows)
            yield
        finally:
            _assign(originals, own)


def _updater(velocity, nesterov):
    def update(parameter, gradient, shrink, decay, momentum, rate):
        # Where the factor is zero, so is the product, of whatever.
        step = tf.math.multiply_no_nan(gradient, shrink)
        if decay is not None:
            step += tf.math.multiply_no_nan(parameter, decay)
        # b <- momentum b + step; w <- w - rate (step + momentum b), or w - rate b: in one pass over the memory.
        tf.raw_ops.ResourceApplyMomentum(
            var=parameter.handle,
            accum=_beside(parameter, velocity).handle,
            lr=rate,
            grad=step,
            momentum=momentum,
            use_nesterov=nesterov,
        )

    return update


def _state(value, name):
    """A variable of the optimizer, whose copies on the replicas stay equal."""
    return tf.Variable(value, trainable=False, name=name, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _beside(copy, variable):
    """The copy of a variable that sits on the device of a copy of another one."""
    return next((part for part in components(variable) if part.device == copy.device), variable)
