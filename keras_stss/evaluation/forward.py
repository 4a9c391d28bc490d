"""A model's logits of batches of views, on the devices of a strategy."""

import numpy as np
import tensorflow as tf

from keras_stss.evaluation.metrics import mean_scores


class Forward:
    """Batches of a distributed :func:`keras_stss.data.pipeline.evaluation_stream` -> logits.

    Args:
        model: built model.
        strategy: ``tf.distribute.Strategy`` that it was built under.
    """

    def __init__(self, model, strategy=None):
        self.strategy = strategy or tf.distribute.get_strategy()
        self._alone = tf.function(lambda frames: model(frames, training=False), reduce_retracing=True)
        self._some = tf.function(lambda *arguments: _some_views(model, *arguments), reduce_retracing=True)

    def rows(self, batch_size, views):
        """Clips of a batch in which about ``batch_size`` views are: at least one, and as many for each device."""
        replicas = self.strategy.num_replicas_in_sync
        return -(-max(batch_size // views, 1) // replicas) * replicas

    def __call__(self, frames, protocol, together):
        """Logits of a batch; of several views of a clip the mean.

        Args:
            frames: uint8 (B, T, H, W, 3), or (B, V, T, H, W, 3) where the protocol has V > 1 views.
            protocol: :class:`keras_stss.evaluation.protocols.NamedProtocol`.
            together: views of a clip that may go through the model at a time.

        Returns:
            List of float32 arrays (B', K), one for each of this worker's replicas. Of several views the softmax of the
            logits is what the protocol averages to.
        """
        views = protocol.views.views
        if views == 1:
            return [part.numpy() for part in self.local(self.strategy.run(self._alone, args=(frames,)))]
        parts, together = [], _part(views, together)
        for first in range(0, views, together):
            found = self.local(self.strategy.run(self._some, args=(frames, tf.constant(first), together)))
            parts.append([part.numpy() for part in found])  # (B', together, K) each
        of_replicas = (np.concatenate(replica, axis=1) for replica in zip(*parts))
        return [mean_scores(logits, protocol.average, axis=1).astype(np.float32) for logits in of_replicas]

    def local(self, value):
        """A distributed value as one of each of this worker's replicas."""
        return self.strategy.experimental_local_results(value)


def _part(views, most):
    """The largest part of the views that has no more than ``most``, all parts being of one size."""
    return next(count for count in range(min(views, most), 0, -1) if views % count == 0)


def _some_views(model, frames, first, count):
    """Logits (B, count, K) of some of the views of frames (B, V, T, H, W, 3)."""
    zero = tf.zeros_like(first)
    part = tf.slice(frames, tf.stack([zero, first, zero, zero, zero, zero]), [-1, count, -1, -1, -1, -1])
    part = tf.reshape(part, tf.concat([[-1], tf.shape(frames)[2:]], 0))  # (B·count, T, H, W, 3)
    logits = model(part, training=False)
    return tf.reshape(logits, [-1, count, logits.shape[-1]])
