"""The papers' optimizer and learning-rate schedules."""

import bisect
import math

import tensorflow as tf

#: Dynamic loss scaling of mixed_float16: start, and steps without overflow before the scale is doubled.
INITIAL_SCALE = 2.0**15
GROWTH_STEPS = 2000


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
    progress = (epoch - schedule.warmup_epochs) / (train.epochs - schedule.warmup_epochs)
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class MomentumSGD:
    """SGD with (Nesterov) momentum as the papers' code has it, which Keras' SGD is not.

    The gradient is clipped by its global norm; then g ← g + weight_decay·w for kernels (not for biases and
    normalisation); b ← momentum·b + g; w ← w - rate·(g + momentum·b), or w - rate·b without Nesterov. The rate is
    outside the momentum, so a drop of the rate acts at once; weight decay goes through the momentum.

    Args:
        variables: the model's trainable Keras variables. Create the optimizer in the strategy's scope.
        train: :class:`keras_stss.config.TrainConfig`.
    """

    def __init__(self, variables, train):
        self.parameters = [variable.value for variable in variables]
        self.decays = [train.weight_decay if variable.name == "kernel" else 0.0 for variable in variables]
        self.train = train
        self.velocities = [
            self._state(tf.zeros(p.shape, p.dtype), f"velocity_{i}") for i, p in enumerate(self.parameters)
        ]
        self.scaled = train.precision == "mixed_float16"
        self.scale = self._state(INITIAL_SCALE if self.scaled else 1.0, "loss_scale")
        self.good_steps = self._state(0, "good_steps")

    @staticmethod
    def _state(value, name):
        return tf.Variable(value, trainable=False, name=name, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)

    @property
    def variables(self):
        return [*self.velocities, self.scale, self.good_steps]

    def apply(self, strategy, gradients, norm, rate):
        """One update, called in the cross-replica context.

        Args:
            strategy: the ``tf.distribute.Strategy`` in whose scope this was created.
            gradients: a tensor a parameter, already summed over replicas and divided by the loss scale.
            norm: their global norm, a scalar; where it is not finite and losses are scaled, nothing is updated.
            rate: learning rate, a scalar.

        Returns:
            Whether the parameters were updated, a boolean scalar.
        """
        finite = tf.math.is_finite(norm)
        shrink = 1.0 if self.train.clip_norm is None else self.train.clip_norm / tf.maximum(norm, self.train.clip_norm)
        for parameter, velocity, gradient, decay in zip(self.parameters, self.velocities, gradients, self.decays):
            update = self._updater(velocity, decay)
            strategy.extended.update(parameter, update, args=(gradient, shrink, rate, finite), group=False)
        if self.scaled:
            self._adapt_scale(finite)
        return finite

    def _updater(self, velocity, decay):
        momentum, nesterov = self.train.momentum, self.train.nesterov

        def update(parameter, gradient, shrink, rate, finite):
            state = velocity
            if hasattr(velocity, "values"):  # the replica's own part, which sits on the parameter's device
                state = next(part for part in velocity.values if part.device == parameter.device)
            step = gradient * shrink + decay * parameter
            new = momentum * state + step
            change = rate * (step + momentum * new if nesterov else new)
            if self.scaled:
                new = tf.where(finite, new, state)
                change = tf.where(finite, change, tf.zeros_like(change))
            state.assign(new)
            parameter.assign_sub(change)

        return update

    def _adapt_scale(self, finite):
        good = tf.where(finite, self.good_steps + 1, 0)
        grow = good >= GROWTH_STEPS
        self.scale.assign(tf.where(finite, tf.where(grow, self.scale * 2.0, self.scale), self.scale * 0.5))
        self.good_steps.assign(tf.where(grow, 0, good))
