"""Our side of the benchmark of data: the stages from files to batches, for :mod:`keras_stss.bench.worker`.

A call goes once through the clips of the case (``read``, ``decode``), or takes some batches (``batch``, ``augment``).
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import tensorflow as tf

from keras_stss.bench import clips as made
from keras_stss.config import DataConfig
from keras_stss.data.annotations import Clip, DataSet, read_annotations
from keras_stss.data.augment import training_view
from keras_stss.data.decode import read_clip
from keras_stss.data.pipeline import training_stream
from keras_stss.data.sample import segment_indices

VERSIONS = {"av": av.__version__}
LABELS = ["Holding something"]  # names no side: half of the views are mirrored
#: Clips of which every contestant shows what it decoded.
SHOWN = 4


def _contestant(packed=None, anew=False):
    """Ours, from the files, or from shards of the form ``packed``; ``anew``: encoded anew."""

    def make(case, arrays, mode):
        clips = [Clip(path, path, 0, case["kind"]) for path in case["paths"]]
        if packed:
            clips = _packed(case, clips, packed, case["height"] if anew else None)
        return _STAGES[mode](case, clips)

    return make


def _packed(case, clips, form, short_side):
    """The clips of the shards, which are written the first time."""
    from keras_stss.data.pack import pack  # not there: the rows say so

    folder = Path(case["root"], f"{case['form']}-packed-{form}-{short_side}")
    if not folder.is_dir():
        pack(DataSet(clips, clips[:1], LABELS), str(folder), form, short_side=short_side, workers=case["threads"])
    return read_annotations(DataConfig(format="records", root=str(folder))).train


def _config(case):
    names = ("frames", "resize", "crop")
    return DataConfig(
        format="clips", root=".", annotations="-", workers=case["threads"], **{name: case[name] for name in names}
    )


# --- stages: (case, clips) → (call, fetch) ----------------------------------------------------------------------------


def _read(case, clips):
    """The bytes that the decoder wants, from the page cache: files are read over and over."""
    pool = ThreadPoolExecutor(case["threads"])
    return (lambda: sum(pool.map(lambda clip: _read_bytes(clip, case["frames"]), clips))), lambda _: {}


def _read_bytes(clip, frames):
    if clip.kind == "video":
        return len(Path(clip.path).read_bytes())
    if clip.kind == "frames":
        names = sorted(os.listdir(clip.path))
        wanted = [names[index] for index in segment_indices(len(names), frames)]
        return sum(len(Path(clip.path, name).read_bytes()) for name in wanted)
    from keras_stss.data.records import Record

    record = Record(clip.path)
    count = len(record.pieces)
    wanted = segment_indices(count, frames) if clip.kind == "packed_frames" else range(count)
    return sum(len(piece) for piece in record.read(list(wanted)))


def _decode(case, clips):
    pool = ThreadPoolExecutor(case["threads"])

    def decode(clip):
        return read_clip(clip, lambda count: segment_indices(count, case["frames"]))

    def call():
        return [frames for number, frames in enumerate(pool.map(decode, clips)) if number < SHOWN]

    return call, lambda shown: {"frames": np.stack(shown)}


def _augment(case, clips):
    """Training views of frames that are in memory already."""
    data = _config(case)
    frames = np.stack([read_clip(clip, lambda count: segment_indices(count, data.frames)) for clip in clips[:SHOWN]])
    stream = tf.data.Dataset.from_tensor_slices(frames).repeat().enumerate()
    options = tf.data.Options()
    options.threading.private_threadpool_size = data.workers
    stream = stream.map(
        lambda number, clip: training_view(clip, tf.stack([number, number]), data, True),
        num_parallel_calls=2 * data.workers,
    )
    return _taking(iter(stream.with_options(options)), case["batches"] * case["batch"], lambda view: view[None])


def _batch(case, clips):
    stream = iter(training_stream(clips, LABELS, _config(case), case["batch"], seed=0))
    return _taking(stream, case["batches"], lambda batch: batch["frames"])


def _taking(stream, count, frames_of):
    def call():
        for _ in range(count):
            taken = next(stream)
        return taken

    return call, lambda taken: {"frames": frames_of(taken).numpy()}


def _long(case, clips):
    """Not timed: bytes of memory in use after each batch of a long run."""
    stream = iter(training_stream(clips, LABELS, _config(case), case["batch"], seed=0))

    def call():
        used = []
        for _ in range(case["long"]):
            next(stream)
            used.append(_memory_used())
        return used

    return call, lambda used: {"used": np.array(used, "int64")}


def _memory_used():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _made(case, arrays, mode):
    """Not timed: writes the clips."""
    size = (case["length"], case["height"], case["width"])
    return (lambda: made.make(case["root"], case["clips"], *size, case["threads"])), lambda _: {}


_STAGES = {"read": _read, "decode": _decode, "augment": _augment, "batch": _batch, "long": _long}
CONTESTANTS = {
    ("data", "clips"): _made,
    ("data", "files"): _contestant(),
    ("data", "jpeg shards"): _contestant("jpeg"),
    ("data", "video shards"): _contestant("video"),
    ("data", "key-frame shards"): _contestant("video", anew=True),
}
