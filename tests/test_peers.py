"""Our operation against other people's, run in the environments of `make peers`; skipped where they are not there."""

import itertools

import numpy as np
import pytest

from keras_stss.bench import networks
from keras_stss.bench.race import Contestant, Task, fetch
from keras_stss.bench.workers import WorkerError, Workers
from keras_stss.ops import dispatch

#: (B, T, H, W, C), offsets, window: small, odd, wider than the map, channels that fill no vector.
CASES = [
    ((2, 4, 7, 9, 13), (-2, -1, 0, 1, 2), (5, 5)),
    ((1, 3, 6, 5, 33), (1,), (9, 9)),
    ((1, 2, 8, 8, 16), (0, 1), (1, 1)),
]
#: What spatial-correlation-sampler and PyTorch can do, and CorrelationCost cannot.
OBLONG = ((1, 3, 6, 8, 7), (-1, 2), (3, 7))
PEERS = {
    "spatial-correlation-sampler": Contestant("torch", "sampler, an offset a call", "spatial-correlation-sampler"),
    "PyTorch": Contestant("torch", "product and gather", "PyTorch: product + gather"),
    "TensorFlow Addons": Contestant("addons", "CorrelationCost, an offset a call", "CorrelationCost"),
}


@pytest.fixture(scope="module")
def workers():
    with Workers() as started:
        yield started


def computed(workers, contestant, case, mode):
    """{"volume", "gradient"} of a contestant; skips where its environment is not there."""
    shape, offsets, window = case
    rng = np.random.default_rng(7)
    arrays = {
        "features": rng.standard_normal(shape, dtype="float32"),
        "gradient": rng.standard_normal((*shape[:4], len(offsets), *window), dtype="float32"),
    }
    task = Task("stss", {"offsets": offsets, "window": window}, arrays, mode)
    try:
        workers.start(contestant.where)
        return fetch(workers, contestant, task)
    except WorkerError as reason:
        if "no environment" in str(reason) or "No module named 'spatial_correlation_sampler'" in str(reason):
            pytest.skip(str(reason))
        raise


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("case", [*CASES, OBLONG], ids=str)
def test_the_same_volume_and_gradient(workers, case, peer, implementation):
    if implementation == "native" and (reason := dispatch.why_not_native("stss")):
        pytest.skip(reason)
    if peer == "TensorFlow Addons" and case is OBLONG:
        pytest.skip("CorrelationCost has square windows only")
    # CorrelationCost's gradient on CPUs is written by several threads at once; it is not an oracle.
    mode = "forward" if peer == "TensorFlow Addons" else "step"
    theirs = computed(workers, PEERS[peer], case, mode)
    ours = computed(workers, Contestant("ours", implementation, implementation), case, mode)
    np.testing.assert_allclose(ours["volume"], theirs["volume"], atol=2e-6, rtol=0)
    if mode == "step":
        largest = np.max(np.abs(theirs["gradient"]))
        np.testing.assert_allclose(ours["gradient"], theirs["gradient"], atol=5e-6 * largest, rtol=0)


def test_peers_differ_where_the_input_does(workers):
    """That the comparison above sees a difference at all: another window is another volume."""
    volumes = [
        computed(workers, PEERS["PyTorch"], ((1, 2, 5, 5, 4), (0, 1), window), "forward")["volume"]
        for window in ((3, 3), (5, 5))
    ]
    inner = volumes[1][..., 1:4, 1:4]
    np.testing.assert_allclose(volumes[0], inner, atol=1e-6)
    for offset in itertools.product((0, 1), repeat=2):
        assert np.max(np.abs(volumes[1][..., offset[0] : offset[0] + 3, 0:3] - volumes[0])) > 0.1


@pytest.mark.parametrize("mode", ["forward", "step"])
@pytest.mark.parametrize("block", networks.BLOCKS)
def test_the_same_blocks_in_pytorch(workers, block, mode):
    """The benchmark's blocks, written from the papers in PyTorch, with our weights: outputs and input's gradient."""
    _, options, native = networks.BLOCKS[block]
    shape = (2, 3, 7, 9, 12) if block == "MotionSqueezeBlock" else (2, 3, 8, 6, 12)
    case = {"block": block, "options": options, "channels": shape[-1], "frames": shape[1], "native": native}
    rng = np.random.default_rng(3)
    arrays = {name: rng.standard_normal(shape, dtype="float32") for name in ("inputs", "gradient")}
    ours = fetch(workers, Contestant("ours", "truth", "ours"), Task("block", case, arrays, mode))
    weights = {name: value for name, value in ours.items() if name.startswith("weight/")}
    try:
        theirs = fetch(
            workers, Contestant("torch", "PyTorch, channels first", ""), Task("block", case, arrays | weights, mode)
        )
    except WorkerError as reason:
        if "no environment" not in str(reason):
            raise
        pytest.skip(str(reason))
    for name in ("outputs", "gradient") if mode == "step" else ("outputs",):
        assert np.linalg.norm(ours[name] - theirs[name]) < 1e-5 * np.linalg.norm(ours[name]), name
