"""Blocks and whole models, in inference and in a training step, beside the same ones written in PyTorch."""

import dataclasses

import numpy as np

from keras_stss.bench.race import Contestant, Effort, Task, fetch, race
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

#: SELFY's extraction in PyTorch by 2-D convolutions with l folded into the batch, not by 1×3×3 ones.
L_IN_BATCH = ", l in the batch (Conv2d)"
SAMPLER = ", spatial-correlation-sampler"
MODES = ("forward", "step")
#: (worker, name there, label, modes): who computes a block or model.
FORMS = [
    ("ours", "native", "keras_stss, native", ("forward", "step")),
    ("ours", "reference", "keras_stss, reference", ("forward", "step")),
    ("ours", "native, frozen", "keras_stss, native, frozen graph", ("forward",)),
    ("ours", "reference, frozen", "keras_stss, reference, frozen graph", ("forward",)),
    ("torch", "PyTorch", "PyTorch", ("forward", "step")),
    ("torch", "PyTorch, maps in the batch", f"PyTorch{L_IN_BATCH}", ("forward", "step")),
    ("torch", "PyTorch, sampler", f"PyTorch{SAMPLER}", ("forward", "step")),
]
CLASSES = 174
#: Relative difference (L2 norms) of outputs and of gradients to the reference's that still counts as the same thing.
#: The gradient's is wide because it jumps: statistics that are rounded otherwise by 1e-5 turn some of the millions of
#: ReLUs over. tests/test_peers.py compares blocks so small that none is.
TOLERANCE = {"outputs": 1e-3, "gradient": 0.3}


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
        effort = Effort(2, 0.001) if quick else Effort(7, 0.25)
        shape = (1, 3, 8, 8, 16) if quick else (1, 8, 28, 28, 128)
        return {"cases": [_block(workers, name, shape, mode, effort) for name in BLOCKS for mode in MODES]}
    effort = Effort(1, 0.001) if quick else Effort(5, 0.4)
    size = f"{frames} frames of {crop}×{crop}, float32; inference of 1 clip, training step of {clips}"
    shapes = {mode: (clips if mode == "step" else 1, frames, crop, crop, 3) for mode in MODES}
    return {"cases": [{"shape": size, **_models(workers, mode, shapes[mode], effort)} for mode in MODES]}


def _block(workers, name, shape, mode, effort):
    _, options, native = BLOCKS[name]
    case = {"block": name, "options": options, "channels": shape[-1], "frames": shape[1], "native": native}
    rng = np.random.default_rng(0)
    arrays = {key: rng.standard_normal(shape, dtype="float32") for key in ("inputs", "gradient")}
    entries = _entries(workers, "block", case, arrays, mode)
    rows = race(workers, entries, effort)
    return {
        "shape": f"{name}, {shape}, float32",
        "mode": mode,
        "rows": [row | {"base": rows[0]["label"]} for row in rows],
    }


def _models(workers, mode, shape, effort):
    """All models in one race, because what counts is their ratio to the one without a block."""
    rng = np.random.default_rng(0)
    arrays = {
        "inputs": rng.integers(0, 256, shape, dtype="uint8"),
        "gradient": rng.standard_normal((shape[0], CLASSES), dtype="float32"),
    }
    entries, bases = [], []
    for name, block in MODELS.items():
        section, options, native = BLOCKS[block] if block else (None, None, ())
        model = {"backbone": "resnet18", "dropout": 0.0, "insert": {"res3": {section: options}} if block else {}}
        case = {"model": model, "classes": CLASSES, "frames": shape[1], "native": native}
        case |= {"block": block, "options": options, "channels": 128}  # of res3 in ResNet-18
        for contestant, task in _entries(workers, "model", case, arrays, mode):
            entries.append((dataclasses.replace(contestant, label=f"{name}: {contestant.label}"), task))
            plain = contestant.label.replace(", native", "").replace(", reference", "").replace(L_IN_BATCH, "")
            bases.append(f"{next(iter(MODELS))}: {plain}")
    rows = [row | {"base": base} for row, base in zip(race(workers, entries, effort), bases)]
    return {"mode": mode, "clips": shape[0], "rows": rows}


def _entries(workers, kind, case, arrays, mode):
    """Who computes a block or model: [(Contestant, Task)], all with the same weights and held to the reference."""
    truth = fetch(workers, Contestant("ours", "truth", "weights"), Task(kind, case, arrays, mode))
    weights = {name: value for name, value in truth.items() if name.startswith("weight/")}

    def compare(found):
        differences = {name: _distance(found[name], truth[name]) for name in TOLERANCE if name in truth}
        wrong = [name for name, value in differences.items() if not value < TOLERANCE[name]]
        reason = f"its {wrong[0]} differ by {differences[wrong[0]]:.0e}" if wrong else None
        return {"difference": max(differences.values()), "wrong": reason}

    task = Task(kind, case, arrays | weights, mode, compare)
    contestants = []
    for where, name, label, modes in FORMS:
        if not case["native"]:  # there is one form of it only
            if "native" in name:
                continue
            label = label.replace(", reference", "")
        if (L_IN_BATCH in label and case["block"] != "SELFYBlock") or (SAMPLER in label and kind == "model"):
            continue
        if mode in modes:
            contestants.append((Contestant(where, name, label), task))
    return contestants


def _distance(found, truth):
    return float(np.linalg.norm(found.astype("float64") - truth) / np.linalg.norm(truth))
