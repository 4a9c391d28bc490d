"""From files to batches: every storage form and stage, beside the TSN/TSM line's way, OpenCV and torchcodec."""

import contextlib
import dataclasses
import tempfile

import numpy as np

from keras_stss.bench.race import Contestant, Effort, Task, fetch, race
from keras_stss.bench.workers import WorkerError, Workers
from keras_stss.config.data import cores

EFFORT = Effort(5, 0.3, warm=True)


@dataclasses.dataclass(frozen=True)
class Size:
    """What is measured on.

    Args:
        clips: number of clips; a call of the stages read and decode goes through all of them.
        length, height, width: of a clip.
        frames, crop: T and the side of what comes out.
        batch: clips of a batch.
        batches: of a call of the stages batch and augment. The streams hold some ready; a call before, which does not
            count, takes them away.
        long: batches of the long run.
        effort: of the timing.
    """

    clips: int = 16
    length: int = 48
    height: int = 240
    width: int = 320
    frames: int = 8
    crop: int = 224
    batch: int = 8
    batches: int = 4
    long: int = 1000
    effort: Effort = EFFORT


QUICK = Size(
    clips=4, length=12, height=48, width=64, crop=32, batch=2, batches=2, long=6, effort=Effort(1, 0.001, warm=True)
)

FILES = Contestant("ours", "files", "keras_stss")
JPEG_SHARDS = Contestant("ours", "jpeg shards", "keras_stss, packed: JPEG shards")
VIDEO_SHARDS = Contestant("ours", "video shards", "keras_stss, packed: video shards")
KEY_SHARDS = Contestant("ours", "key-frame shards", "keras_stss, packed: shards of video, all key frames")
OPENCV = Contestant("torch", "OpenCV", "OpenCV, without normalisation")
PIL = [
    Contestant("torch", "PIL", "PIL: the TSN/TSM way"),
    Contestant("torch", "PIL, uint8", "PIL, without normalisation"),
]
VIDEO = [
    FILES,
    VIDEO_SHARDS,
    KEY_SHARDS,
    JPEG_SHARDS,
    Contestant("torch", "OpenCV and PIL", "OpenCV, PIL: the TSN/TSM way"),
    OPENCV,
    Contestant("torch", "torchcodec, exact", "torchcodec, exact seeks, without normalisation"),
    Contestant("torch", "torchcodec, approximate", "torchcodec, approximate seeks, without normalisation"),
]
#: Storage form → (title, kind of its clips, contestants); those of one form are timed in turn.
FORMS = {
    "jpeg": ("Folders of JPEG frames", "frames", [FILES, JPEG_SHARDS, *PIL, OPENCV]),
    "webm": ("webm (VP9)", "video", VIDEO),
    "mp4": ("mp4 (H.264)", "video", VIDEO),
}
AUGMENT = [FILES, *PIL, OPENCV, Contestant("torch", "PyTorch", "PyTorch, without normalisation")]
#: Those that decode as another one does: nothing to time again.
SAME_DECODER = ("PIL, uint8", "OpenCV and PIL")
#: Largest mean difference of pixels to ours, and of the corner that tells which frame it is, in levels of 255.
TOLERANCE, TAG_TOLERANCE = 4.0, 10.0


def run(workers, kind, quick=False):
    """See :func:`keras_stss.bench.bench`; {"cases": [...], "memory": [...]}."""
    size = QUICK if quick else Size()
    with tempfile.TemporaryDirectory() as root:
        base = _case(root, size)
        fetch(workers, Contestant("ours", "clips", "clips"), Task(kind, base | {"clips": size.clips}, {}, "make"))
        cases = []
        for form, (title, clip_kind, contestants) in FORMS.items():
            case = base | {"form": form, "kind": clip_kind, "paths": _paths(root, form, size.clips)}
            cases += [{"shape": title, **each} for each in _stages(workers, kind, case, contestants, size)]
            if form == "jpeg":
                rows = _race(workers, AUGMENT, Task(kind, case | {"paths": case["paths"][:4]}, {}, "augment"), size)
                augment = {"shape": "Augmentation alone, of frames in memory", "mode": "augment"}
                augment |= {"clips": size.batches * size.batch, "rows": rows}
        memory = [_memory(workers, kind, base, form, size, quick) for form in ("jpeg", "webm")]
    return {"cases": [*cases, augment], "memory": memory, "size": dataclasses.asdict(size)}


def _case(root, size):
    return {
        "root": root,
        "threads": cores(),
        "frames": size.frames,
        "resize": [size.height, size.width],
        "crop": size.crop,
        "batch": size.batch,
        "batches": size.batches,
        "length": size.length,
        "height": size.height,
        "width": size.width,
    }


def _paths(root, form, count):
    """Where :mod:`keras_stss.bench.clips` writes the clips of a form; that needs TensorFlow."""
    return [f"{root}/{form}/{number}{'' if form == 'jpeg' else '.' + form}" for number in range(count)]


def _stages(workers, kind, case, contestants, size):
    """Rows of each stage: {"mode", "threads", "clips" (of a call), "rows"}."""
    ours = [contestant for contestant in contestants if contestant.where == "ours"]
    decoders = [contestant for contestant in contestants if contestant.name not in SAME_DECODER]
    truth = fetch(workers, FILES, Task(kind, case, {}, "decode"))["frames"]
    stages = [("read", case["threads"], ours, None)]
    for threads in dict.fromkeys([1, case["threads"]]):
        stages.append(("decode", threads, decoders, _comparison(truth)))
    stages.append(("batch", case["threads"], contestants, _batch_comparison(size)))
    for mode, threads, racing, compare in stages:
        task = Task(kind, case | {"threads": threads}, {}, mode, compare)
        clips = size.batches * size.batch if mode == "batch" else size.clips
        rows = _race(workers, racing, task, size)
        yield {"mode": mode, "threads": threads, "clips": clips, "rows": rows}


def _race(workers, contestants, task, size):
    rows = race(workers, [(contestant, task) for contestant in contestants], size.effort)
    return [row | {"base": FILES.label} for row in rows]


def _comparison(truth):
    """Decoders round differently; the corners tell whether it is the right frame."""
    side = truth.shape[2] // 16  # half of what is painted: the rest is blurred

    def compare(found):
        frames = found["frames"]
        if frames.shape != truth.shape:
            return {"wrong": f"it gives {frames.shape}, not {truth.shape}"}
        difference = float(np.mean(np.abs(frames.astype("float32") - truth)))
        corners = [pixels[:, :, :side, :side].mean((2, 3, 4), dtype="float32") for pixels in (frames, truth)]
        wrong = None
        if not np.max(np.abs(corners[0] - corners[1])) < TAG_TOLERANCE:
            wrong = "it gives other frames"
        elif not difference < TOLERANCE:
            wrong = f"its pixels differ by {difference:.1f} of 255"
        return {"difference": difference, "wrong": wrong}

    return compare


def _batch_comparison(size):
    shape = (size.batch, size.frames, size.crop, size.crop, 3)

    def compare(found):
        frames = found["frames"]
        wrong = None if frames.shape == shape and frames.dtype == "uint8" else f"it gives {frames.shape}, not {shape}"
        # Random views of random clips: no picture is all one colour.
        return {"wrong": wrong or (None if (np.ptp(frames, (1, 2, 3, 4)) > 30).all() else "it gives empty views")}

    return compare


def _memory(workers, kind, base, form, size, quick):
    """Memory of a process, of its own if not quick, in a long run: {"form", "batches", "used", "largest"}."""
    title, clip_kind, _ = FORMS[form]
    paths = _paths(base["root"], form, size.clips)
    case = base | {"form": form, "kind": clip_kind, "paths": paths, "long": size.long}
    found = {"form": title, "batches": size.long}
    with contextlib.nullcontext(workers) if quick else Workers(workers.peers) as own:
        try:
            used = fetch(own, FILES, Task(kind, case, {}, "long"))["used"]
        except WorkerError as error:
            return found | {"error": str(error)}
    # The buffers fill in the first batches.
    start = min(100, size.long // 4)
    places = [start, size.long // 2, -1]
    return found | {"start": start, "used": [int(used[place]) for place in places], "largest": int(used.max())}
