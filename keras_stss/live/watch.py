"""The loop: newest frame, model where it is due, and who shows it."""

import collections
import dataclasses
import itertools

import numpy as np

#: Latencies that are kept for the figures.
KEPT = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What the model said.

    Args:
        number: of the prediction, from 0.
        time: of the frame in the stream, in seconds.
        logits: (K,).
        latency: seconds from the frame's arrival to the result, or None where the stream was not in real time.
        seconds: that the model took.
    """

    number: int
    time: float
    logits: np.ndarray
    latency: float | None
    seconds: float


class Figures:
    """What a stream came to.

    Args:
        spacing: :class:`keras_stss.live.spacing.Spacing`.
    """

    def __init__(self, spacing):
        self.spacing, self.predictions, self.taken, self.dropped, self.seconds = spacing, 0, 0, 0, 0.0
        self._latencies, self._steps = (collections.deque(maxlen=KEPT) for _ in range(2))

    def add(self, result):
        self.predictions += 1
        self._steps.append(result.seconds)
        if result.latency is not None:
            self._latencies.append(result.latency)

    def summary(self):
        """Dictionary for JSON; times in milliseconds, of the last predictions where there were very many.

        ``frames`` were decoded, of which ``dropped`` made room for newer ones; ``predictions`` were made, ``missed``
        more would have been due; ``frame_rate`` and ``prediction_rate`` are means by the stream's time.
        """
        frames = self.taken + self.dropped
        latencies = [1000 * value for value in self._latencies]
        return {
            "frames": frames,
            "dropped": self.dropped,
            "predictions": self.predictions,
            "missed": self.spacing.missed,
            "seconds": round(self.seconds, 3),
            "frame_rate": _rate(frames, self.seconds),
            "prediction_rate": _rate(self.predictions, self.seconds),
            "latency_median_ms": _percentile(latencies, 50),
            "latency_95th_ms": _percentile(latencies, 95),
            "model_median_ms": _percentile([1000 * value for value in self._steps], 50),
        }


def watch(feed, model, spacing, viewers, now, *, realtime=True, until=None, figures=None):
    """Follows a stream to its end.

    Args:
        feed: :class:`keras_stss.live.feed.Feed`.
        model: function from a picture to logits (K,).
        spacing: :class:`keras_stss.live.spacing.Spacing`.
        viewers: functions of a :class:`~keras_stss.live.feed.Frame` and the last :class:`Result`, called with every
            frame that is not dropped.
        now: the clock of the frames' arrivals.
        realtime: whether the time from a frame's arrival to its result means anything.
        until: seconds of the stream after which it counts as ended.
        figures: :class:`Figures` to add to: they are right whatever ends the loop.

    Returns:
        The figures.
    """
    figures, result = figures or Figures(spacing), None
    for number in itertools.count():
        frame = feed.take()
        figures.dropped = feed.dropped
        if frame is None or (until is not None and frame.time >= until):
            return figures
        figures.taken, figures.seconds = number + 1, frame.time
        if spacing.is_due(frame):
            began = now()
            logits = model(frame.picture)
            ended = now()
            latency = ended - frame.arrival if realtime else None
            result = Result(figures.predictions, frame.time, logits, latency, ended - began)
            figures.add(result)
        for viewer in viewers:
            viewer(frame, result)
    return figures


def _rate(count, seconds):
    return round((count - 1) / seconds, 3) if count > 1 and seconds > 0 else None


def _percentile(values, share):
    return round(float(np.percentile(values, share)), 2) if values else None
