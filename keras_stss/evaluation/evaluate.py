"""Scoring a set of clips with a model: every clip once, one centre clip, centre crop."""

import numpy as np
import tensorflow as tf

from keras_stss.data.annotations import DataError
from keras_stss.data.pipeline import Unreadable, evaluation_stream
from keras_stss.data.workers import distribute_shard, gather, sum_arrays, workers
from keras_stss.evaluation.metrics import summarize


class Scorer:
    """A model's logits for all clips of a list, on the devices of a strategy.

    Args:
        model: built model.
        strategy: ``tf.distribute.Strategy`` that it was built under.
    """

    def __init__(self, model, strategy=None):
        self.strategy = strategy or tf.distribute.get_strategy()
        self._forward = tf.function(lambda frames: model(frames, training=False), reduce_retracing=True)

    def score(self, clips, data, batch_size, progress=None):
        """Scores clips; of several workers, each reads its part, and all get all scores.

        Args:
            clips: list of :class:`keras_stss.data.annotations.Clip`.
            data: :class:`keras_stss.config.DataConfig`.
            batch_size: clips a step; rounded up to a multiple of the number of devices.
            progress: called with the number of clips scored after each step, on all workers about as many.

        Returns:
            (indices into clips (M,), logits (M, K), {path: reason} of clips that could not be read)

        Raises:
            DataError: where too many clips, or all, cannot be read.
        """
        replicas = self.strategy.num_replicas_in_sync
        batch_size = -(-batch_size // replicas) * replicas
        unreadable = Unreadable(clips, data.max_unreadable)
        if workers(self.strategy)[1] > 1:
            indices, logits = self._score_with_others(clips, data, batch_size, unreadable, progress)
        else:
            stream = evaluation_stream(clips, data, batch_size, unreadable)
            batches = self.strategy.experimental_distribute_dataset(stream)
            indices, logits = self._score(batches, unreadable, progress)
        unreadable.check()  # which also raises where no clip at all could be read
        return indices, logits, unreadable.reasons

    def _score(self, batches, unreadable, progress):
        indices, logits, done = [], [], 0
        with unreadable.explained():
            for batch in batches:
                result = self.strategy.run(self._forward, args=(batch["frames"],))
                for index, part in zip(self._local(batch["index"]), self._local(result)):
                    known = index.numpy() >= 0
                    indices.append(index.numpy()[known])
                    logits.append(part.numpy()[known])
                    done += int(known.sum())
                if progress:
                    progress(done)
        return np.concatenate(indices), np.concatenate(logits)

    def _score_with_others(self, clips, data, batch_size, unreadable, progress):
        """This worker's part of each batch, and then what all of them found."""
        shard = workers(self.strategy)
        stream = evaluation_stream(clips, data, batch_size, unreadable, shard=shard)
        batches, fault = distribute_shard(self.strategy, stream, batch_size), None
        count_all = progress and (lambda done: progress(min(done * shard[1], len(clips))))
        try:
            indices, logits = self._score(batches, unreadable, count_all)
        except DataError as error:  # the others have to hear of it before this worker ends
            fault = str(error)
        for other, reasons in gather(self.strategy, [fault, unreadable.reasons]):
            if other:
                raise DataError(other)
            unreadable.restore(reasons)
        table = np.zeros((len(clips), 1 + logits.shape[1]), np.float32)
        table[indices, 0], table[indices, 1:] = 1.0, logits
        table = sum_arrays(self.strategy, table)  # each row is one worker's
        known = np.flatnonzero(table[:, 0])
        return known, table[known, 1:]

    def _local(self, value):
        return self.strategy.experimental_local_results(value)


def evaluate(scorer, clips, labels, data, batch_size, progress=None):
    """Figures of a model on clips.

    Args:
        scorer: :class:`Scorer`.
        clips, data, batch_size, progress: see :meth:`Scorer.score`.
        labels: class names by index.

    Returns:
        (figures, scores): a dictionary for JSON (top1, top5, mean_class, loss, clips, unreadable: {path: reason}), and
        {"index", "label", "logits"} as arrays.
    """
    index, logits, reasons = scorer.score(clips, data, batch_size, progress)
    truth = np.asarray([clips[i].label for i in index])
    figures = summarize(logits, truth, len(labels))
    figures |= {"clips": len(index), "unreadable": reasons}
    return figures, {"index": index, "label": truth, "logits": logits}
