"""``keras-stss predict``."""

import contextlib
import dataclasses
import hashlib
import json
import sys
import time

from keras_stss.cli.codes import MENDABLE
from keras_stss.config import ConfigError
from keras_stss.config.data import cores

_FILES_ONLY = ("list", "root", "protocol", "others", "retry", "batch_size", "workers", "devices")
_STREAM_ONLY = ("rate", "stride", "average", "no_realtime", "seconds", "show")


def add(commands):
    predict = commands.add_parser(
        "predict",
        help="classify video files, folders of them or of frames, and lists; or a live stream",
        description="Classifies files, or with --stream what a camera, a network or a file shows.",
    )
    predict.add_argument("run", help="run directory")
    predict.add_argument("files", nargs="*", metavar="FILE", help="video, folder of frames, or folder with such in it")
    predict.add_argument("--top", type=int, default=5, metavar="K", help="labels to give (default: 5)")
    predict.add_argument("--json", action="store_true", help="print one JSON line a file, or a prediction of a stream")
    predict.add_argument(
        "--out",
        metavar="FILE",
        help="of files: .jsonl or .csv to write to, which the same command goes on with where it was stopped; of a "
        "stream: .mp4, .mkv or .mov with label and confidence drawn in, or - for a player that reads it from a pipe",
    )
    files = predict.add_argument_group("files")
    files.add_argument(
        "--list", action="append", metavar="FILE", help="a path a line, or a CSV of path and, if wanted, start and end"
    )
    files.add_argument("--root", metavar="DIR", help="where relative paths of FILE and --list start (default: here)")
    files.add_argument("--protocol", metavar="NAME", help="as in evaluate (default: 1x1)")
    files.add_argument("--with", dest="others", action="append", metavar="RUN", help="average with this run, too")
    files.add_argument("--retry", action="store_true", help="with --out: do those again that could not be read")
    files.add_argument("--batch-size", type=int, metavar="N", help="views at a time (default: the run's)")
    files.add_argument("--workers", type=int, metavar="N", help="files decoded at a time (default: one a core)")
    files.add_argument(
        "--devices", type=int, metavar="N", help="GPUs to use (default: all); without GPUs, N parts of the CPU"
    )
    _add_stream(predict)
    predict.set_defaults(command=_predict, refuse=predict.error)


def _add_stream(predict):
    stream = predict.add_argument_group("a stream")
    stream.add_argument(
        "--stream",
        metavar="SOURCE",
        help="a file; a camera: its number, /dev/video0 or FORMAT:NAME of an FFmpeg device; or an address (rtsp://…)",
    )
    stream.add_argument("--rate", type=float, metavar="N", help="frames a second that the model sees (default: as far "
                        "apart as those of the run's clips)")  # fmt: skip
    stream.add_argument("--stride", type=int, metavar="N", help="every Nth frame instead")
    stream.add_argument("--average", type=int, metavar="N", help="predictions that are averaged (default: a clip's "
                        "frames where the model is causal, else 8)")  # fmt: skip
    stream.add_argument("--no-realtime", action="store_true", help="of a file: every frame, as fast as it goes")
    stream.add_argument("--seconds", type=float, metavar="S", help="stop after so much of the stream")
    stream.add_argument("--show", action="store_true", help="show it in a window")


def _predict(options):
    if options.top < 1:
        raise ConfigError(f"--top must be at least 1. Received: {options.top}")
    if options.stream is not None:
        _refuse_some(options, _FILES_ONLY, "does not go with --stream")
        if options.files:
            options.refuse("--stream takes one source, and no FILE beside it")
        from keras_stss.cli.watch import watch

        return watch(options)
    _refuse_some(options, _STREAM_ONLY, "goes with --stream")
    if not options.files and not options.list:
        options.refuse("name a FILE, a --list or a --stream")
    if options.retry and not options.out:
        options.refuse("--retry goes with --out")
    return _predict_files(options)


def _refuse_some(options, names, why):
    given = [name for name in names if getattr(options, name) not in (None, False)]
    if given:
        options.refuse(f"--{'with' if given[0] == 'others' else given[0].replace('_', '-')} {why}")


def _predict_files(options):
    from keras_stss.evaluation.predict import predict_clips, ranked
    from keras_stss.evaluation.protocols import DEFAULT, find_protocol

    name = options.protocol or DEFAULT
    protocol = find_protocol(name)
    for key in ("batch_size", "workers"):
        if getattr(options, key) is not None and getattr(options, key) < 1:
            raise ConfigError(f"--{key.replace('_', '-')} must be at least 1. Received: {getattr(options, key)}")
    runs = _open_runs(options, protocol)
    labels, listing = runs[0].labels, _listing(options)
    top = min(options.top, len(labels))
    batch_size = options.batch_size or runs[0].config.evaluate.batch_size
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(_sink(options, runs, name, protocol, top, listing.clips, batch_size))
        progress = stack.enter_context(_Progress(len(listing.clips), len(sink.done), bool(options.out)))
        if len(sink.done) < len(listing.clips):
            members = _members(runs, options)
            found = predict_clips(
                members, listing.clips, batch_size, protocol=protocol, faults=listing.faults, done=sink.done
            )
            for index, outcome in found:
                clip, is_fault = listing.clips[index], isinstance(outcome, str)
                sink.add(clip, outcome if is_fault else ranked(outcome, labels, top))
                if is_fault:
                    progress.say(f"{shown(clip.id + clip.place[len(clip.path) :])}: {outcome}")
                progress.step()
    if options.out:
        _conclude(options, sink, progress)
    return MENDABLE if sink.failed else 0


def _conclude(options, sink, progress):
    """Says what is in the file now."""
    now = progress.count - progress.before
    figures = {"out": options.out, "clips": progress.count, "before": progress.before, "failed": sink.failed}
    if options.json:
        print(json.dumps({**figures, "seconds": round(progress.seconds, 3)}))
        return
    speed = f", {now / progress.seconds:.1f} clips/s" if now else ""
    before = f", {progress.before} of them before" if progress.before else ""
    failed = f"; {sink.failed} could not be read" + ("" if options.retry else ": --retry does them again")
    print(f"{progress.count} clips{before}{speed}{failed if sink.failed else ''}: {options.out}")


@dataclasses.dataclass(frozen=True)
class _OpenRun:
    name: str
    run: object
    config: object
    labels: list


def _open_runs(options, protocol):
    from keras_stss.training.saving.run import check_same_labels, read_run

    runs = [_OpenRun(folder, *read_run(folder)) for folder in (options.run, *(options.others or ()))]
    check_same_labels(runs, "such runs cannot be averaged")
    protocol.check(runs[0].labels)
    return runs


def _listing(options):
    from keras_stss.evaluation.listing import Listing

    listing = Listing()
    for name in options.files:
        listing.add(name, options.root or "")
    for path in options.list or ():
        listing.add_list(path, options.root or "")
    if not listing.clips:
        raise ConfigError(f"{', '.join(options.list)}: no clip is listed")
    return listing


def _members(runs, options):
    from keras_stss.cli.tested import make_test_strategy
    from keras_stss.evaluation.forward import Forward
    from keras_stss.models import load_model

    strategy, members = make_test_strategy(options.devices), []
    for each in runs:
        with strategy.scope():
            model = load_model(each.run.folder)
        # A run's own number of workers is that of the machine that trained it.
        workers = options.workers or cores()
        members.append((Forward(model, strategy), each.config.data.model_copy(update={"workers": workers})))
    return members


def _sink(options, runs, name, protocol, top, clips, batch_size):
    """Where predictions go: the file, or standard output."""
    from keras_stss.evaluation.prediction_file import PredictionFile
    from keras_stss.evaluation.scores import DATA_KEYS, what_scores_depend_on

    if not options.out:
        return _Printed(options.json)
    depends = [what_scores_depend_on(each.run.best, [], each.config.data, protocol) for each in runs]
    pixels = [key for key in DATA_KEYS if key not in ("format", "root", "videos")]
    about = {
        "protocol": name,
        "models": [each["model"] for each in depends],
        "data": [{key: each["data"][key] for key in pixels} for each in depends],
        "labels": hashlib.sha256(json.dumps(runs[0].labels).encode()).hexdigest(),
        "top": top,
    }
    rows = max(batch_size // protocol.views.views, 1)
    return PredictionFile(options.out, about, top, clips, rows, options.retry)


class _Printed:
    """Standard output in the place of a file."""

    done, failed = frozenset(), 0

    def __init__(self, as_json):
        self.as_json = as_json

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def add(self, clip, outcome):
        from keras_stss.evaluation.prediction_file import json_line, row_of

        self.failed += isinstance(outcome, str)
        if self.as_json:
            print(json_line(row_of(clip, outcome)), flush=True)
        elif not isinstance(outcome, str):
            lines = [f"  {probability:6.1%}  {label}" for label, probability in outcome]
            print(shown(clip.id + clip.place[len(clip.path) :]), *lines, sep="\n", flush=True)


def shown(name):
    """A name on one line: what cannot be printed as its code."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


class _Progress:
    """A bar on a terminal; where results go to a file and there is no terminal, a line now and then."""

    def __init__(self, total, done, has_file):
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        from keras_stss.training.showing.progress import Counter

        self.before, self.count, self.began, self.bar = done, done, time.monotonic(), None
        console = Console(stderr=True)
        if console.is_terminal and (has_file or not sys.stdout.isatty()):
            columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=console, redirect_stdout=False)
            self.task = self.bar.add_task("clips", total=total, completed=done)
        self.counter = Counter(total, "predicted", sys.stderr) if has_file and not self.bar else None

    def __enter__(self):
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_):
        if self.bar:
            self.bar.stop()

    def step(self):
        self.count += 1
        if self.bar:
            self.bar.update(self.task, completed=self.count)
        elif self.counter:
            self.counter(self.count)

    def say(self, line):
        if self.bar:
            self.bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    @property
    def seconds(self):
        return time.monotonic() - self.began
