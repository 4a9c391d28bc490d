"""Scoring a set of clips with a model: every clip once, by a test protocol."""

import numpy as np
import tensorflow as tf

from keras_stss.data.annotations import DataError
from keras_stss.data.calls import calls
from keras_stss.data.pipeline import Unreadable, evaluation_stream
from keras_stss.data.workers import distribute_shard, gather, sum_arrays, workers
from keras_stss.evaluation.forward import Forward
from keras_stss.evaluation.metrics import summarize
from keras_stss.evaluation.protocols import DEFAULT, PROTOCOLS


class Scorer:
    """A model's logits for all clips of a list, on the devices of a strategy.

    Args:
        model: built model.
        strategy: ``tf.distribute.Strategy`` that it was built under.
    """

    def __init__(self, model, strategy=None):
        self._forward = Forward(model, strategy)
        self.strategy = self._forward.strategy

    def score(self, clips, data, batch_size, progress=None, *, protocol=None, change=None, known=None):
        """Scores clips; of several workers, each reads its part, and all get all scores.

        Args:
            clips: list of :class:`keras_stss.data.annotations.Clip`.
            data: :class:`keras_stss.config.DataConfig`.
            batch_size: views that go through the model at a time: those of ``batch_size // V`` clips, at least one,
                rounded up to a multiple of the number of devices. The V views of one clip that are more go one part
                after the other.
            progress: called with the number of clips scored after each step, on all workers about as many.
            protocol: :class:`keras_stss.evaluation.protocols.NamedProtocol` (default: one clip, centre crop).
            change: function of a clip's frames, uint8 (V, T, crop, crop, 3), and its index that gives others of that
                shape, which the model sees instead (default: none).
            known: {path: reason} of clips that are known to be unreadable; they are not tried again.

        Returns:
            (indices into clips (M,), logits (M, K), {path: reason} of clips that could not be read). Of several views
            the softmax of the logits is what the protocol averages to.

        Raises:
            DataError: where too many clips, or all, cannot be read.
        """
        protocol = protocol or PROTOCOLS[DEFAULT]
        views = protocol.views.views
        rows = self._forward.rows(batch_size, views)
        together = max(batch_size // rows, 1)
        unreadable = Unreadable(clips, data.max_unreadable)
        unreadable.restore(known or {})

        def stream(shard=None):
            found = evaluation_stream(
                clips, protocol.data(data), rows, unreadable, protocol=protocol.views, shard=shard
            )
            return found if change is None else _changed(found, change, views)

        def forward(frames):
            return self._forward(frames, protocol, together)

        if workers(self.strategy)[1] > 1:
            indices, logits = self._score_with_others(clips, stream, rows, forward, unreadable, progress)
        else:
            batches = self.strategy.experimental_distribute_dataset(stream())
            indices, logits = self._score(batches, forward, unreadable, progress)
        unreadable.check()  # which also raises where no clip at all could be read
        return indices, logits, unreadable.reasons

    def _score(self, batches, forward, unreadable, progress):
        indices, logits, done = [], [], 0
        with unreadable.explained():
            for batch in batches:
                for index, part in zip(self._forward.local(batch["index"]), forward(batch["frames"])):
                    known = index.numpy() >= 0
                    indices.append(index.numpy()[known])
                    logits.append(part[known])
                    done += int(known.sum())
                if progress:
                    progress(done)
        return np.concatenate(indices), np.concatenate(logits)

    def _score_with_others(self, clips, stream, batch_size, forward, unreadable, progress):
        """This worker's part of each batch, and then what all of them found."""
        shard = workers(self.strategy)
        batches, fault = distribute_shard(self.strategy, stream(shard), batch_size), None
        count_all = progress and (lambda done: progress(min(done * shard[1], len(clips))))
        try:
            indices, logits = self._score(batches, forward, unreadable, count_all)
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


def evaluate(scorer, clips, labels, data, batch_size, progress=None, *, protocol=None):
    """Figures of a model on clips.

    Args:
        scorer: :class:`Scorer`.
        clips, data, batch_size, progress, protocol: see :meth:`Scorer.score`.
        labels: class names by index.

    Returns:
        (figures, scores): a dictionary for JSON (top1, top5, mean_class, loss, clips, unreadable: {path: reason}), and
        {"index", "label", "logits"} as arrays.
    """
    index, logits, reasons = scorer.score(clips, data, batch_size, progress, protocol=protocol)
    truth = np.asarray([clips[i].label for i in index])
    figures = summarize(logits, truth, len(labels))
    figures |= {"clips": len(index), "unreadable": reasons}
    return figures, {"index": index, "label": truth, "logits": logits}


def _changed(stream, change, views):
    """The stream with other frames."""

    def change_batch(frames, indices):
        many = frames if views > 1 else frames[:, None]  # (B, V, T, H, W, 3)
        changed = [clip if index < 0 else change(clip, int(index)) for clip, index in zip(many, indices)]
        return np.stack(changed).reshape(frames.shape)

    def one(batch):
        frames = tf.numpy_function(calls.guard(change_batch), [batch["frames"], batch["index"]], tf.uint8)
        return {**batch, "frames": tf.ensure_shape(frames, batch["frames"].shape)}

    return stream.map(one, num_parallel_calls=2, deterministic=True).prefetch(1)
