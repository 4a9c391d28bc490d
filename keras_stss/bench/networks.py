"""Blocks and whole models, in inference and in a training step, beside the same ones written in PyTorch."""

import numpy as np

from keras_stss.bench.race import Contestant, Effort, Race, fetch, race
from keras_stss.bench.workers import BenchError

SELFY = {
    "temporal_offsets": [-2, -1, 0, 1, 2],
    "window": [9, 9],
    "channels": 128,
    "extraction_channels": [4, 16, 64, 64],
    "integration_channels": [64, 64, 64, 64],
}
MOTION_SQUEEZE = {
    "channels": 64,
    "window": [15, 15],
    "sigma": 5.0,
    "temperature": 0.01,
    "transform_channels": [16, 32, 64],
}
BLOCKS = {
    "SELFYBlock": ("selfy", SELFY, ("stss", "map_conv")),
    "MotionSqueezeBlock": ("motion_squeeze", MOTION_SQUEEZE, ("displacement",)),
}
MODELS = {"TSM-R18": None, "SELFYNet-TSM-R18": "SELFYBlock", "MSNet-TSM-R18": "MotionSqueezeBlock"}

OURS = [Contestant("ours", "native", "keras_stss, native"), Contestant("ours", "reference", "keras_stss, reference")]
FROZEN = [
    Contestant("ours", "native, frozen", "keras_stss, native, frozen graph"),
    Contestant("ours", "reference, frozen", "keras_stss, reference, frozen graph"),
]
PYTORCH = [Contestant("torch", "PyTorch", "PyTorch")]
MAPS = [Contestant("torch", "PyTorch, maps in the batch", "PyTorch, l in the batch, Conv2d")]
CLASSES = 174
#: Relative difference (L2 norms) of outputs and of gradients to the reference's that still counts as the same thing. In
#: a training step gradients come through normalisations over millions of float32 numbers, which everybody sums up in
#: another order; noise as input makes that worse than it is in use. A forgotten term is far beyond it.
TOLERANCE = {"outputs": 1e-3, "gradient": 0.15}


def run(workers, kind, quick=False, clips=2, frames=8, crop=224):
    """See :func:`keras_stss.bench.bench`; {"cases": [...]}.

    Args:
        clips: of a training step of a model; inference and blocks take one.
        frames, crop: of a clip of a model.
    """
    for name, value, least in (("clips", clips, 1), ("frames", frames, 2), ("crop", crop, 32)):
        if value < least:
            raise BenchError(f"{name} must be at least {least}. Received: {name}={value}")
    if quick:
        clips, frames, crop = 1, 3, 32
    if kind == "block":
        effort = Effort(2, 0.001) if quick else Effort(9, 0.3)
        shape = (1, 3, 8, 8, 16) if quick else (1, 8, 28, 28, 128)
        return {"cases": [case for name in BLOCKS for case in _block(workers, name, shape, effort)]}
    effort = Effort(1, 0.001) if quick else Effort(5, 0.5)
    modes = {"forward": (1, frames, crop, crop, 3), "step": (clips, frames, crop, crop, 3)}
    return {"cases": [case for name in MODELS for case in _model(workers, name, modes, effort)]}


def _block(workers, name, shape, effort):
    _, options, native = BLOCKS[name]
    case = {"block": name, "options": options, "channels": shape[-1], "frames": shape[1], "native": native}
    rng = np.random.default_rng(0)
    arrays = {key: rng.standard_normal(shape, dtype="float32") for key in ("inputs", "gradient")}
    label = f"{name} on {shape}, float32"
    return [
        {"shape": label, "mode": mode, "rows": _rows(workers, "block", case, arrays, mode, effort)}
        for mode in ("forward", "step")
    ]


def _model(workers, name, shapes, effort):
    block = MODELS[name]
    section, options, native = BLOCKS[block] if block else (None, None, ())
    model = {"backbone": "resnet18", "dropout": 0.0, "insert": {"res3": {section: options}} if block else {}}
    rng = np.random.default_rng(0)
    cases = []
    for mode, shape in shapes.items():
        case = {"model": model, "classes": CLASSES, "frames": shape[1], "native": native}
        case |= {"block": block, "options": options, "channels": 128}  # of res3 in ResNet-18
        arrays = {
            "inputs": rng.integers(0, 256, shape, dtype="uint8"),
            "gradient": rng.standard_normal((shape[0], CLASSES), dtype="float32"),
        }
        rows = _rows(workers, "model", case, arrays, mode, effort)
        cases.append({"shape": name, "mode": mode, "clips": f"{shape[0]} × {shape[1:4]}", "rows": rows})
    return cases


def _rows(workers, kind, case, arrays, mode, effort):
    ours = OURS if case["native"] else [Contestant("ours", "reference", "keras_stss")]
    frozen = FROZEN if case["native"] else [Contestant("ours", "reference, frozen", "keras_stss, frozen graph")]
    contestants = [*ours, *PYTORCH, *(MAPS if case["block"] == "SELFYBlock" else [])]
    contestants += frozen if mode == "forward" else []
    # The reference's outputs and the weights for everybody come first, apart from all timing.
    truth = fetch(workers, Contestant("ours", "truth", "weights"), Race(kind, case, arrays, mode))
    weights = {name: value for name, value in truth.items() if name.startswith("weight/")}

    def compare(found):
        differences = {name: _distance(found[name], truth[name]) for name in TOLERANCE if name in truth}
        wrong = [name for name, value in differences.items() if not value < TOLERANCE[name]]
        reason = f"its {wrong[0]} differ by {differences[wrong[0]]:.0e}" if wrong else None
        return {"difference": max(differences.values()), "wrong": reason}

    return race(workers, contestants, Race(kind, case, arrays | weights, mode, compare), effort)


def _distance(found, truth):
    return float(np.linalg.norm(found.astype("float64") - truth) / np.linalg.norm(truth))
