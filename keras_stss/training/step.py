"""One step of training on all devices of a strategy."""

import keras
import tensorflow as tf


def make_step(strategy, model, optimizer, train):
    """Compiles the training step.

    Args:
        strategy: ``tf.distribute.Strategy``; model and optimizer were made in its scope.
        model: from uint8 frames to logits.
        optimizer: :class:`keras_stss.training.optimizer.MomentumSGD`.
        train: :class:`keras_stss.config.TrainConfig`.

    Returns:
        Function (batch, rate) → (loss, correct, gradient norm, updated): scalars over the global batch.
    """
    parameters = [variable.value for variable in model.trainable_variables]

    def replica_step(frames, labels, scale):
        with tf.GradientTape() as tape:
            logits = model(frames, training=True)  # (b, K)
            truth = tf.one_hot(labels, logits.shape[-1])
            losses = keras.losses.categorical_crossentropy(
                truth, logits, from_logits=True, label_smoothing=train.label_smoothing
            )
            loss = tf.reduce_sum(losses) / train.batch_size
            scaled = loss * scale
        gradients = tape.gradient(scaled, parameters)
        correct = tf.reduce_sum(tf.cast(tf.argmax(logits, -1, labels.dtype) == labels, tf.int32))
        total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, [*gradients, loss])
        gradients = [gradient / scale for gradient in total[:-1]] if optimizer.scaled else total[:-1]
        return gradients, total[-1], correct

    @tf.function
    def step(batch, rate):
        scale = tf.convert_to_tensor(optimizer.scale)
        gradients, loss, correct = strategy.run(replica_step, args=(batch["frames"], batch["label"], scale))
        first = [strategy.experimental_local_results(gradient)[0] for gradient in gradients]
        norm = tf.linalg.global_norm(first)
        updated = optimizer.apply(strategy, gradients, norm, rate)
        loss = strategy.experimental_local_results(loss)[0]
        return loss, strategy.reduce("SUM", correct, axis=None), norm, updated

    return step
