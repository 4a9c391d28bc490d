"""The operation against every public way to compute it, its floors, and how its cost grows."""

import numpy as np

from keras_stss.bench import truth
from keras_stss.bench.race import Contestant, Effort, Task, peak_memory, race
from keras_stss.bench.workers import BARE_MEMORY, Workers

SHAPES = {
    "(4, 8, 14, 14, 128), 5 offsets, 9×9": ((4, 8, 14, 14, 128), (-2, -1, 0, 1, 2), (9, 9)),
    "(1, 8, 28, 28, 64), 1 offset, 15×15": ((1, 8, 28, 28, 64), (1,), (15, 15)),
}
QUICK = {"(1, 3, 6, 5, 8), 2 offsets, 3×3": ((1, 3, 6, 5, 8), (-1, 1), (3, 3))}

NATIVE = Contestant("ours", "native", "keras_stss, native")
REFERENCE = Contestant("ours", "reference", "keras_stss, reference")
CONTESTANTS = [
    NATIVE,
    REFERENCE,
    Contestant("ours", "reference, XLA", "keras_stss, reference, XLA"),
    Contestant("ours", "flat gather", "TensorFlow: product + flat gather"),
    Contestant("ours", "flat gather, XLA", "TensorFlow: product + flat gather, XLA"),
    Contestant("ours", "row gather", "TensorFlow: product + row gather"),
    Contestant("ours", "row gather, XLA", "TensorFlow: product + row gather, XLA"),
    Contestant("torch", "sampler, an offset a call", "spatial-correlation-sampler, an offset a call"),
    Contestant("torch", "sampler, one call", "spatial-correlation-sampler, frames repeated, one call"),
    Contestant("torch", "einsum and band", "PyTorch: einsum + band"),
    Contestant("torch", "row products", "PyTorch: row products"),
    Contestant("torch", "product and gather", "PyTorch: product + gather"),
    Contestant("addons", "CorrelationCost, an offset a call", "TensorFlow Addons: CorrelationCost, an offset a call"),
]
FLOORS = [Contestant("ours", "matrix product", "matrix product"), Contestant("ours", "copy", "copy")]
#: Largest difference to float64, and of gradients as a share of the largest one, that still counts as the same thing.
TOLERANCE = 1e-4

MATRIX = 2048
#: One size changes at a time: base shape (B, T, H, W, C), L, side of the window.
BASE = {"B": 2, "T": 8, "H, W": 14, "C": 64, "L": 5, "window": 9}
GROWTH = {
    "B": (1, 4, 8),
    "T": (4, 16, 32),
    "H, W": (7, 28, 56),
    "C": (16, 128, 256),
    "L": (1, 3, 9),
    "window": (5, 13, 17),
}


def run(workers, kind, quick=False):
    """See :func:`keras_stss.bench.bench`; {"cases": [...], "growth": [...]}."""
    effort = Effort(2, 0.001) if quick else Effort()
    shapes = QUICK if quick else SHAPES
    found = {}
    for name, shape in shapes.items():
        for mode in ("forward", "step"):
            found[name, mode] = _case(workers, shape, mode, effort)
    growth = _growth(workers, quick)
    with Workers(workers.peers, BARE_MEMORY) as bare:
        for (name, mode), case in found.items():
            _add_memory(bare, case, shapes[name], mode)
    return {"cases": [{"shape": name, "mode": mode, **case} for (name, mode), case in found.items()], "growth": growth}


def _case(workers, shape, mode, effort):
    case, arrays = _inputs(*shape)
    compare = _comparison(arrays, *shape[1:], mode)
    rows = _race(workers, CONTESTANTS, Task("stss", case, arrays, mode, compare), effort)
    # In forward, features are read and the volume is written; in the step, the volume's gradient and the features are
    # read again and the features' gradient is written. Three products instead of one: two operands have a gradient.
    features, volume = arrays["features"].nbytes, arrays["gradient"].nbytes
    moved = features + volume if mode == "forward" else 3 * features + 2 * volume
    products = 1 if mode == "forward" else 3
    macs = products * arrays["gradient"].size * shape[0][-1]
    inside = products * sum(arrays["features"][here].size for _, here, _ in truth.pairs(*shape))
    sizes = {"size": MATRIX if effort.rounds > 2 else MATRIX // 8, "bytes": moved // 2}  # a copy reads and writes
    product, copy = _race(workers, FLOORS, Task("stss", case | sizes, {}, mode), effort)
    floors = {"macs": macs, "macs_per_second": sizes["size"] ** 3 / product["median"]}
    floors |= {"bytes": moved, "bytes_per_second": moved / copy["median"]}
    floors |= {"arithmetic": macs / floors["macs_per_second"], "copy": copy["median"]}
    floors |= {"macs_inside": inside, "arithmetic_inside": inside / floors["macs_per_second"]}
    return {"rows": [row | {"base": NATIVE.label} for row in rows], "floors": floors}


def _race(workers, contestants, task, effort):
    return race(workers, [(contestant, task) for contestant in contestants], effort)


def _add_memory(bare, case, shape, mode):
    """Peak memory beyond input and output, in bytes, to each row; and the output's size."""
    what, arrays = _inputs(*shape)
    case["output_bytes"] = arrays["gradient"].nbytes
    given_back = arrays["gradient"].nbytes + (arrays["features"].nbytes if mode == "step" else 0)
    task = Task("stss", what, arrays, mode)
    peaks = peak_memory(bare, [(contestant, task) for contestant in CONTESTANTS])
    for row, peak in zip(case["rows"], peaks):
        row["memory"] = None if peak is None else max(0, peak - given_back)


def _inputs(shape, offsets, window):
    rng = np.random.default_rng(0)
    features = rng.standard_normal(shape, dtype="float32")
    gradient = rng.standard_normal((*shape[:4], len(offsets), *window), dtype="float32")
    return {"offsets": offsets, "window": window}, {"features": features, "gradient": gradient}


def _comparison(arrays, offsets, window, mode):
    volume = truth.stss(arrays["features"], offsets, window)
    if mode == "step":
        gradient = truth.stss_gradient(arrays["features"], arrays["gradient"], offsets, window)

    def compare(found):
        difference, wrong = float(np.max(np.abs(found["volume"] - volume))), None
        if not difference < TOLERANCE:
            wrong = f"its volume differs by {difference:.0e}"
        if mode == "step":
            difference = float(np.max(np.abs(found["gradient"] - gradient)) / np.max(np.abs(gradient)))
            if not difference < TOLERANCE:
                wrong = wrong or f"its gradient is wrong: by {difference:.0e} of the largest value"
        return {"difference": difference, "wrong": wrong}

    return compare


def _growth(workers, quick):
    """Times of native and reference at the base and with one size changed."""
    effort = Effort(1, 0.001) if quick else Effort(3, 0.05)
    changes = [{}] + [{what: value} for what, values in GROWTH.items() for value in values]
    found = []
    for change in changes[:2] if quick else changes:
        size = BASE | change
        shape = (size["B"], size["T"], size["H, W"], size["H, W"], size["C"])
        offsets = tuple(range(-(size["L"] // 2), size["L"] // 2 + 1))
        case, arrays = _inputs(shape, offsets, (size["window"],) * 2)
        row = {"changed": ", ".join(f"{what} = {value}" for what, value in (change or BASE).items())}
        for mode in ("forward", "step"):
            results = _race(workers, [NATIVE, REFERENCE], Task("stss", case, arrays, mode), effort)
            row |= {f"{who} {mode}": result.get("median") for who, result in zip(("native", "reference"), results)}
        found.append(row)
    return found
