"""Classifying clips that nobody has labelled: one, or as many as there are."""

from pathlib import Path

import numpy as np

from keras_stss.data.pipeline import Unreadable, evaluation_stream, read_clip
from keras_stss.evaluation.metrics import mean_scores, softmax
from keras_stss.evaluation.protocols import DEFAULT, PROTOCOLS


def predict(model, labels, data, path):
    """Ranks the labels of one clip, cut as in testing: the middle frame of each segment, centre crop.

    Args:
        model: Keras model with logits.
        labels: class names by index.
        data: :class:`keras_stss.config.DataConfig` of the run.
        path: video file, or folder of frames.

    Returns:
        List of (label, probability), most probable first.

    Raises:
        ClipError: where the clip cannot be read.
    """
    frames = read_clip(str(path), "frames" if Path(path).is_dir() else "video", data)  # (T, crop, crop, 3)
    return ranked(model(np.asarray(frames)[None], training=False).numpy()[0], labels)


def ranked(logits, labels, top=None):
    """(label, probability) of the most probable labels, all where ``top`` is None; logits (K,)."""
    probabilities = softmax(logits)
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [(labels[index], float(probabilities[index])) for index in order]


def predict_clips(members, clips, batch_size, *, protocol=None, faults=None, done=()):
    """What models say of clips, each as soon as its batch is through, with no more than some batches in memory.

    Args:
        members: list of (:class:`keras_stss.evaluation.forward.Forward`, :class:`keras_stss.config.DataConfig` of its
            run); of several the probabilities are averaged. They are of the same classes.
        clips: list of :class:`keras_stss.data.annotations.Clip`, all of different places.
        batch_size: views that go through a model at a time.
        protocol: :class:`keras_stss.evaluation.protocols.NamedProtocol` (default: one clip, centre crop). Random clips
            of a video are a function of its place in the list.
        faults: {clip.place: reason} of clips that are known to be unreadable.
        done: places of clips to pass over.

    Yields:
        (index into clips, logits float32 (K,), or the reason as text why there are none), in order.
    """
    protocol, streams = protocol or PROTOCOLS[DEFAULT], []
    for forward, data in members:
        streams.append(_of_one(forward, clips, data, batch_size, protocol, _Failures(clips, faults or {}, done)))
    for found in zip(*streams, strict=True):
        index, outcomes = found[0][0], [outcome for _, outcome in found]
        reasons = [reason for outcome in outcomes if (reason := _why_none(outcome))]
        if reasons or len(outcomes) == 1:
            yield index, (reasons or outcomes)[0]
        else:
            yield index, mean_scores(np.stack(outcomes), "softmax", axis=0).astype(np.float32)


def _why_none(outcome):
    """The reason why a clip has no prediction, or None: it cannot be read, or the model has no numbers for it."""
    if isinstance(outcome, str):
        return outcome
    return None if np.isfinite(outcome).all() else "the model's scores of it are no numbers"


def _of_one(forward, clips, data, batch_size, protocol, failures):
    """As :func:`predict_clips`, of one model."""
    views = protocol.views.views
    # A single clip shall not wait for a batch to be filled up with zeros.
    rows = forward.rows(min(batch_size, len(clips) * views), views)
    stream = evaluation_stream(clips, protocol.data(data), rows, failures, protocol=protocol.views)
    following = 0
    for batch in forward.strategy.experimental_distribute_dataset(stream):
        logits = forward(batch["frames"], protocol, max(batch_size // rows, 1))
        for indices, part in zip(forward.local(batch["index"]), logits):
            for index, row in zip(indices.numpy().tolist(), part):
                if index >= 0:
                    yield from failures.between(following, index)
                    yield index, row
                    following = index + 1
    yield from failures.between(following, len(clips))


class _Failures(Unreadable):
    """Clips that could not be read: any number of them, and none is told here.

    Args:
        clips, faults, done: see :func:`predict_clips`.
    """

    def __init__(self, clips, faults, done):
        super().__init__(clips, 1.0)
        self.clips, self.done, self.faults = clips, frozenset(done), dict(faults)

    def __contains__(self, place):
        return place in self.done or place in self.faults

    def record(self, place, reason):
        self.faults[place] = reason

    def between(self, first, after):
        """(index, reason) of the clips from one index to before another, none of which gave frames."""
        for index in range(first, after):
            if self.clips[index].place not in self.done:
                yield index, self.faults[self.clips[index].place]
