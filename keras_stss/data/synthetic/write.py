"""Writing an embedded data set, laid out and annotated exactly as Something-Something V2 is."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import av
import numpy as np

from keras_stss.config.data import cores
from keras_stss.data.synthetic import long_range, motions

FPS = 12  # the rate of Something-Something V2
MARKER, PREFIX, VIDEOS = "synthetic.json", "something-something-v2", "20bn-something-something-v2"
# Numbers of a set, as the marker holds them, and the least value of each.
LEAST = {"seed": 0, "train_per_class": 1, "validation_per_class": 1, "frames": 8, "height": 32, "width": 32}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of the sets that `prepare` writes.

    `plan(index, rng, frames, aspect)` draws what `render(plan, height, width)` shows. `version` is raised whenever the
    pixels of a given seed change, so that an old folder is not mistaken. `sizes` are the defaults of `prepare`. Where
    `apart` is true every frame is coded for itself: coded from its neighbours, a frame would show by its faults
    whether they are like it.
    """

    templates: tuple
    plan: Callable
    render: Callable
    version: int
    sizes: dict
    apart: bool = False


VARIANTS = {
    "motion": Variant(
        motions.TEMPLATES, motions.plan_clip, motions.render_scene, 1,
        {"train_per_class": 128, "validation_per_class": 20, "frames": 24, "height": 112, "width": 144},
    ),
    "long_range": Variant(
        long_range.TEMPLATES, long_range.plan_clip, long_range.render_film, 1,
        {"train_per_class": 40, "validation_per_class": 24, "frames": 16, "height": 56, "width": 56}, apart=True,
    ),
}  # fmt: skip


def _write_json(path, value):
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)


def encode_webm(path, clip, apart=False):
    """Write a clip, uint8 (frames, H, W, 3), as a VP9 webm file at `path`, by way of a temporary name.

    With `apart` every frame is a key frame.
    """
    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    try:
        with av.open(str(temporary), "w", format="webm", options={"fflags": "+bitexact"}) as container:
            # One thread and no wall-clock fields: the same pixels give the same bytes.
            options = {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0"} | ({"g": "1"} if apart else {})
            encode(container, container.add_stream("libvpx-vp9", rate=FPS, options=options), clip)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def encode(container, stream, clip):
    """Encode a clip, uint8 (frames, H, W, 3), with one thread into a new stream of an open container of PyAV."""
    stream.height, stream.width = clip.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1
    for image in clip:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    container.mux(stream.encode())


def _claim(root, arguments):
    """Mark `root` as holding the set of `arguments`; ValueError where it holds anything else."""
    marker, rule = root / MARKER, "root must be a new folder or hold a set made with the same arguments."
    if marker.exists():
        held = json.loads(marker.read_text())
        if held != arguments:
            raise ValueError(f"{rule} Received {arguments}; root={str(root)!r} holds {held}")
        return
    foreign = [name for name in (f"{PREFIX}-labels.json", VIDEOS) if (root / name).exists()]
    if foreign:
        raise ValueError(f"{rule} Received root={str(root)!r}, which holds {foreign} but no {MARKER}")
    root.mkdir(parents=True, exist_ok=True)
    _write_json(marker, arguments)


def _annotation(number, text, phrases):
    """One record of an annotation file: of a clip of template `text`, with a phrase for each [something]."""
    label = text.replace("[something]", "{}").format(*phrases).lower()
    return {"id": str(number), "label": label, "template": text, "placeholders": list(phrases)}


def _run(work, jobs, total, workers, progress):
    """Run `work(*job)` for all jobs on threads, with a bar; the first error stops the rest and is raised."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("rendering clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, disable=not progress) as bar, ThreadPoolExecutor(workers) as pool:
        task = bar.add_task("", total=total, completed=total - len(jobs))
        try:
            for done, future in enumerate(as_completed([pool.submit(work, *job) for job in jobs]), 1):
                future.result()
                bar.advance(task)
                if progress and done % 250 == 0 and not bar.console.is_terminal:  # a log file sees no bar move
                    print(f"{total - len(jobs) + done} of {total} clips", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def prepare(root, *, variant="motion", train_per_class=None, validation_per_class=None, seed=0, frames=None,
            height=None, width=None, workers=None, progress=True):  # fmt: skip
    """Write a data set into `root`, laid out and annotated as Something-Something V2.

    `variant` is a key of `VARIANTS`, which also has the defaults of the numbers. `train_per_class` and
    `validation_per_class` count clips; each has `frames` frames of `height` x `width` pixels at 12 per second.
    `workers` threads draw and encode (default: one per processor); their number does not change a byte. An interrupted
    run goes on where it stopped; with nothing left to do it returns at once. `progress` shows a bar.

    Returns a dict: `root`, `videos` (folders), `classes`, `train`, `validation` (clips) and `written` (clips made by
    this call). Raises ValueError for an unknown variant, a number below its least (`LEAST`), a negative seed, or a root
    that holds another set.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}. Received variant={variant!r}")
    chosen, templates = VARIANTS[variant], VARIANTS[variant].templates
    given = (train_per_class, validation_per_class, frames, height, width)
    numbers = {
        name: chosen.sizes[name] if value is None else value for name, value in zip(chosen.sizes, given, strict=True)
    }
    numbers = _checked({"seed": seed, **numbers, "workers": workers or cores()})
    root, videos = Path(root), Path(root) / VIDEOS
    workers, frames, height, width = (numbers[name] for name in ("workers", "frames", "height", "width"))

    def plan(split, index):  # each clip has its own generator: the same whatever is drawn first
        rng = np.random.default_rng((seed, split, index))
        return chosen.plan(index % len(templates), rng, frames, width / height)

    def work(number, split, index):
        encode_webm(videos / f"{number}.webm", chosen.render(plan(split, index), height, width), chosen.apart)

    plan(0, 0)  # what it refuses is told before anything is written
    named = {} if variant == "motion" else {"variant": variant}  # the first set has no name in its marker
    _claim(root, {**named, "version": chosen.version, **{name: numbers[name] for name in LEAST}})
    videos.mkdir(exist_ok=True)
    counts = [len(templates) * numbers[name] for name in ("train_per_class", "validation_per_class")]
    jobs = [(split, index) for split in (0, 1) for index in range(counts[split])]
    present = {entry.name for entry in os.scandir(videos)}
    missing = [(number, *job) for number, job in enumerate(jobs, 1) if f"{number}.webm" not in present]
    if missing:
        _run(work, missing, len(jobs), workers, progress)
    names = ("train", "validation", "labels")  # written last: once they are there, all is there
    if missing or not all((root / f"{PREFIX}-{name}.json").exists() for name in names):
        plans = [plan(*job) for job in jobs]
        rows = [_annotation(n, templates[one.template], one.placeholders) for n, one in enumerate(plans, 1)]
        labels = {motions.plain_label(text): str(index) for index, text in enumerate(templates)}
        for name, value in zip(names, (rows[: counts[0]], rows[counts[0] :], labels), strict=True):
            _write_json(root / f"{PREFIX}-{name}.json", value)
    return {"root": str(root), "videos": str(videos), "classes": len(templates),
            "train": counts[0], "validation": counts[1], "written": len(missing)}  # fmt: skip


def _checked(numbers):
    """Whole numbers, none below its least; ValueError otherwise."""
    for name, value in numbers.items():
        least = LEAST.get(name, 1)
        if int(value) != value or value < least:
            raise ValueError(f"{name} must be a whole number from {least}. Received {name}={value!r}")
    return {name: int(value) for name, value in numbers.items()}
