"""``keras-stss predict --stream``."""

import contextlib
import json
import math
import signal
import sys
import time

from keras_stss.cli.codes import MENDABLE
from keras_stss.config import ConfigError


def watch(options):
    """Follows a stream; returns the exit code."""
    _check(options)
    from keras_stss.data.decode import ClipError
    from keras_stss.live import Feed, Figures, LiveModel, Spacing
    from keras_stss.live import watch as follow
    from keras_stss.live.feed import timed
    from keras_stss.models import load_model
    from keras_stss.training.saving.run import read_run

    run, config, labels = read_run(options.run)
    with contextlib.ExitStack() as stack:
        source = _opened(options.stream)
        realtime = not options.no_realtime
        if source.is_live and not realtime:
            raise ConfigError("--no-realtime is for files: what is live comes when it comes")
        spacing, why = _spacing(options, config)
        if spacing.frames and source.rate and realtime and not source.is_live:
            # Of a file that is played some frames may not even be decoded, so counting them would not do.
            spacing = Spacing(seconds=spacing.frames / source.rate)
        model = LiveModel(load_model(run.folder), config, options.average)
        print(f"{model.how}; {spacing} ({why})", file=sys.stderr, flush=True)
        figures, viewers = Figures(spacing), _viewers(options, labels, stack)
        stack.enter_context(_told_to_stop())
        feed = Feed(lambda wait: timed(source, time.monotonic, wait, realtime), drops=realtime)
        fault = None
        try:
            follow(feed, model, spacing, viewers, time.monotonic, realtime=realtime, until=options.seconds,
                   figures=figures)  # fmt: skip
        except ClipError as error:
            fault = str(error)
        except (KeyboardInterrupt, _Closed, BrokenPipeError):
            pass  # the ways to end what has no end: Ctrl-C, the window, the player behind a pipe
        finally:
            if feed.close():
                source.close()
        stack.close()
    if fault is None and not figures.taken:
        fault = "no frame came"
    _conclude(options, figures, source, fault)
    return MENDABLE if fault else 0


class _Closed(Exception):
    """The window is."""


def _check(options):
    if options.rate is not None and options.stride is not None:
        options.refuse("give --rate or --stride, not both")
    for name in ("rate", "stride", "average", "seconds"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name} must be a number above 0. Received: {value}")
    if options.json and options.out == "-":
        options.refuse("--json and --out - both want standard output")
    if options.out and options.out != "-":
        from keras_stss.live.video_writer import check_target

        check_target(options.out)


def _opened(name):
    from keras_stss.data.decode import ClipError
    from keras_stss.live import Source

    try:
        return Source(name)
    except ClipError as error:
        raise ClipError(f"{name}: {error}") from None


def _spacing(options, config):
    from keras_stss.live import Spacing, spacing_of

    if options.rate is not None:
        return Spacing(seconds=1 / options.rate), "--rate"
    if options.stride is not None:
        return Spacing(frames=options.stride), "--stride"
    spacing, why = spacing_of(config.data)
    return spacing, f"{why}; --rate and --stride say otherwise"


def _viewers(options, labels, stack):
    """Functions that show a frame and the last result."""
    top = min(options.top, len(labels))
    viewers = [] if options.out == "-" else [_Lines(labels, top, options.json)]
    if not options.out and not options.show:
        return viewers
    from keras_stss.live import Overlay

    # Three lines leave something of the picture.
    overlay, outputs = Overlay(labels, min(top, 3)), []
    if options.show:
        from keras_stss.live.window import Window

        window = Window(f"{options.stream} · {options.run}")
        stack.callback(window.close)

        def show(picture, _):
            window.show(picture)
            if window.is_closed:
                raise _Closed

        outputs.append(show)
    if options.out:
        written = _Written(options.out)
        stack.callback(written.close)
        outputs.append(written)

    def draw(frame, result):
        picture = overlay(frame.picture, result)
        for output in outputs:
            output(picture, frame.time)

    return [*viewers, draw]


class _Written:
    """A video that begins with its first frame, whose size it has."""

    def __init__(self, target):
        self.target, self._writer = target, None

    def __call__(self, picture, seconds):
        from keras_stss.live import VideoWriter

        if self._writer is None:
            target = sys.stdout.buffer if self.target == "-" else self.target
            self._writer = VideoWriter(target, *picture.shape[:2])
        self._writer.add(picture, seconds)

    def close(self):
        if self._writer is not None:
            self._writer.close()


class _Lines:
    """Prints each result as JSON, or the label where it changes."""

    def __init__(self, labels, top, as_json):
        self.labels, self.top, self.as_json = labels, top, as_json
        self._number, self._label = None, None

    def __call__(self, frame, result):
        from keras_stss.evaluation.predict import ranked

        if result is None or result.number == self._number:
            return
        self._number = result.number
        best = ranked(result.logits, self.labels, self.top)
        if self.as_json:
            late = None if result.latency is None else round(1000 * result.latency, 2)
            top = [{"label": label, "probability": None if share != share else share} for label, share in best]
            line = {"time": round(result.time, 4), "frame": frame.number, "latency_ms": late, "top": top}
            print(json.dumps(line, ensure_ascii=False), flush=True)
        elif best[0][0] != self._label:
            self._label = best[0][0]
            print(f"{result.time:8.2f} s  {best[0][1]:6.1%}  {self._label}", flush=True)


def _conclude(options, figures, source, fault):
    """Says how it went; where standard output is a video, on the other one."""
    found = figures.summary() | {"damaged": source.damaged, "skipped": _skipped(figures, source)}
    if options.json:
        print(json.dumps({"summary": found | ({"error": fault} if fault else {})}, ensure_ascii=False), flush=True)
    elif figures.taken:
        print(*_lines(found, options), sep="\n", file=sys.stderr if options.out == "-" else sys.stdout)
    if fault:
        print(f"{options.stream}: {fault}", file=sys.stderr)


def _skipped(figures, source):
    """Frames that were not even decoded, lest a file fall behind."""
    return max(source.promised - figures.taken - figures.dropped - source.damaged, 0) if source.left_out else 0


def _lines(found, options):
    lost = {"dropped": "dropped", "skipped": "not decoded, so as not to lag", "damaged": "damaged"}
    lost = ", ".join(f"{found[key]} {word}" for key, word in lost.items() if found[key])
    rate = _per_second(found["frame_rate"])
    yield f"{found['frames']} frames in {found['seconds']:.1f} s{rate}{': ' if lost else ''}{lost}"
    missed = f", {found['missed']} more were due" if found["missed"] else ""
    yield f"{found['predictions']} predictions{_per_second(found['prediction_rate'])}{missed}"
    if not found["predictions"]:
        return
    model = f"model {found['model_median_ms']:.0f} ms"
    if found["latency_median_ms"] is None:
        yield f"{model} a prediction in the median; no latency, as the stream was not in real time"
    else:
        late = (found["latency_median_ms"], found["latency_95th_ms"])
        yield "from arrival to result: {:.0f} ms in the median, {:.0f} ms at the 95th percentile".format(*late)
        yield f"{model} in the median"
    if options.out and options.out != "-":
        yield options.out


def _per_second(rate):
    return f", {rate:.1f} a second" if rate else ""


@contextlib.contextmanager
def _told_to_stop():
    """SIGTERM ends as Ctrl-C does, so that the video is whole."""

    def stop(*_):
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # in another thread than the main one
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
