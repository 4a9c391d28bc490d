"""The training loop beside plain ``model.fit``: the same model, stream, batch and optimizer, from files to weights."""

import contextlib
import dataclasses
import math
import statistics
import tempfile

from keras_stss.bench.race import Contestant, Effort, Task, fetch, race
from keras_stss.bench.workers import WorkerError, Workers
from keras_stss.config.data import cores


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and its clips.

    Args:
        title: for the tables.
        model: the ``model`` section of a config.
        length, height, width: of the webm files.
        resize, crop, frames, batch: of what the model gets.
        steps: of a call.
        files: different clips; each has as many names as an epoch needs that outlasts the measurement.
        epoch: steps of an epoch.
    """

    title: str
    model: dict
    length: int
    height: int
    width: int
    resize: tuple
    crop: int
    frames: int
    batch: int
    steps: int
    files: int = 16
    epoch: int = 400


DEMO = {
    "backbone": "resnet10",
    "width": 16,
    "dropout": 0.0,
    "insert": {
        "res3": {
            "selfy": {
                "window": [5, 5],
                "channels": 32,
                "strides": 1,
                "extraction_channels": [4, 16],
                "integration_channels": [16, 16],
            }
        }
    },
}
TSM = {"backbone": "resnet18", "dropout": 0.0}
SIZES = (
    Size("the demo's SELFYNet", DEMO, 24, 112, 144, (76, 98), 64, 8, 16, 4),
    Size("TSM-ResNet-18", TSM, 24, 240, 320, (128, 170), 112, 8, 4, 2),
)
TINY = {"backbone": "resnet10", "width": 8, "dropout": 0.0}
QUICK = (Size("a tiny TSM", TINY, 8, 32, 40, (32, 40), 32, 2, 2, 1, files=4, epoch=100),)
#: Many short visits: each round is a pair of neighbours in time, whose ratio what slows the machine down hardly moves.
EFFORT, QUICK_EFFORT = Effort(20, 1.0, warm=True), Effort(1, 0.001, warm=True)

FIT = Contestant("ours", "fit", "model.fit, jit_compile=False")
CONTESTANTS = [
    Contestant("ours", "loop", "keras_stss train"),
    FIT,
    Contestant("ours", "loop, XLA", "keras_stss train, train.xla=true"),
    Contestant("ours", "fit, XLA", "model.fit, jit_compile=True"),
]
WAITED = Contestant("ours", "waited", "share of waiting")
#: Largest relative difference of the first step's loss: the same model has seen the same clips.
TOLERANCE = 1e-4


def run(workers, kind, quick=False):
    """See :func:`keras_stss.bench.bench`; {"cases": [...]}."""
    # A process for each model: its threads and memory are not those of the model before.
    cases = []
    for size in QUICK if quick else SIZES:
        with contextlib.nullcontext(workers) if quick else Workers(workers.peers) as own:
            cases.append(_case(own, kind, size, QUICK_EFFORT if quick else EFFORT, quick))
    return {"cases": cases}


def _case(workers, kind, size, effort, quick):
    values = dataclasses.asdict(size)
    with tempfile.TemporaryDirectory() as root:
        case = {**values, "root": root, "threads": cores()}
        fetch(workers, Contestant("ours", "set", "clips"), Task(kind, case, {}, "step"))
        contestants = CONTESTANTS[:2] if quick else CONTESTANTS  # XLA compiles for a minute
        losses = []

        def compare(found):
            """To the first of them."""
            losses.append(float(found["loss"]))
            difference = abs(losses[-1] - losses[0]) / abs(losses[0])
            wrong = None if difference < TOLERANCE else f"its first loss is {losses[-1]:.6g}, not {losses[0]:.6g}"
            return {"difference": difference, "wrong": wrong}

        task = Task(kind, case, {}, "step", compare)
        rows = race(workers, [(contestant, task) for contestant in contestants], effort)
        for row, contestant in zip(rows, contestants):
            row["base"] = FIT.label.replace("False", str("XLA" in contestant.name))
            row["waited"] = _waited(workers, kind, contestant)
        for row in rows:
            base = next(other for other in rows if other["label"] == row["base"])
            row["ratio"], row["processor_ratio"] = (_ratio(row, base, of) for of in ("seconds", "processor"))
    shape = f"{size.title}: {size.frames} frames of {size.crop}×{size.crop}, batches of {size.batch}"
    return {"shape": shape, "clips": size.steps * size.batch, "rows": rows}


def _ratio(row, base, of):
    """Of the base's seconds or processor seconds to a row's, in pairs; None where one of both was not measured."""
    if "visits" not in row or "visits" not in base:
        return None
    return median_with_interval([other[of] / own[of] for own, other in zip(row["visits"], base["visits"])])


def median_with_interval(values):
    """The median of a sample, and between which of its values that of the population lies.

    The interval is the sign test's: its ends are values of the sample, whatever their distribution.

    Args:
        values: n independent numbers.

    Returns:
        {"median", "low", "high"}: with 95 % confidence at least; low and high are None below six numbers, which can
        give no such confidence.
    """
    values, count = sorted(values), len(values)
    # The k-th from each end misses the median with probability 2 P(heads < k) of n fair coins.
    place, tail = 0, 2 * 0.5**count
    while tail <= 0.05:
        place += 1
        tail += 2 * math.comb(count, place) * 0.5**count
    low, high = (values[place - 1], values[-place]) if place else (None, None)
    return {"median": statistics.median(values), "low": low, "high": high}


def _waited(workers, kind, contestant):
    """Share of the time that a loop waited for data; None for those that do not tell it."""
    try:
        return float(fetch(workers, WAITED, Task(kind, {"of": contestant.name}, {}, "step"))["share"])
    except WorkerError:
        return None
