"""benchmarks/gpu where there is no GPU: what it says, and that all of it but the GPU works."""

import importlib.util
import subprocess
import sys
import time

import cuda_on_host
import pytest

FOLDER = cuda_on_host.TESTS.parent / "benchmarks" / "gpu"


def run(*arguments):
    command = [sys.executable, str(FOLDER / "stss_gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""})


def test_without_a_gpu_it_says_so():
    done = run("--check-only")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("stss_gpu: needs an NVIDIA GPU, nvcc and PyTorch with CUDA: ")


def test_unknown_arguments_are_refused():
    done = run("--dtypes", "float8")
    assert done.returncode == 2 and "float8" in done.stderr


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def modules(torch):
    """stss_gpu and its neighbours, on the CPU."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("stss_gpu", FOLDER / "stss_gpu.py")
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        script.DEVICE = "cpu"
        yield script, importlib.import_module("formulations"), importlib.import_module("kernels")
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def ours(modules, tmp_path_factory):
    kernels = modules[2]
    library = kernels.Library(cuda_on_host.build(tmp_path_factory.mktemp("kernels")))
    return dict(zip(("stss", "displacement"), kernels.operations(library), strict=True))


def test_formulations_agree(torch, modules, ours):
    formulations = modules[1]
    torch.manual_seed(0)
    features = torch.randn(1, 3, 6, 7, 8, requires_grad=True)
    found = {}
    for name, stss in {**formulations.STSS, "keras_stss": ours["stss"]}.items():
        volume = stss(features, (-1, 0, 5), (3, 5))
        weights = torch.linspace(-1, 1, volume.numel()).reshape(volume.shape)
        found[name] = volume, torch.autograd.grad(volume, features, weights)[0]
    for volume, gradient in found.values():
        torch.testing.assert_close(volume, found["unfold"][0], atol=2e-6, rtol=0)
        torch.testing.assert_close(gradient, found["unfold"][1], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["SelfyBlock", "MotionSqueezeBlock"])
def test_blocks_agree(torch, modules, ours, name):
    formulations = modules[1]
    selfy = name == "SelfyBlock"
    pairs = (ours["stss"], formulations.dense_band) if selfy else (ours["displacement"], formulations.displacement)
    outputs = []
    for operation in pairs:
        torch.manual_seed(1)
        block = getattr(formulations, name)(operation, 4, 16).eval()
        outputs.append(block(torch.randn(4, 16, 8, 8)))
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)


def test_checks_and_races_run(modules, ours, monkeypatch):
    """The whole script with small sizes and a clock in the GPU's place."""
    script = modules[0]
    rows = script.check(ours, ["float32", "bfloat16"], [((1, 2, 5, 6, 8), (1,), (3, 5))])
    assert len(rows) == 8 and all(row["right"] for row in rows), rows

    def timer(function):
        start = time.perf_counter()
        function()
        return {"ms": 1e3 * (time.perf_counter() - start), "spread": (0, 0), "graph": False, "peak_mb": 0.0}

    small = ((1, 2, 4, 5, 8), (0, 1), (3, 3))
    monkeypatch.setattr(script, "SHAPES", dict.fromkeys(script.SHAPES, small))
    monkeypatch.setattr(script, "GROWTH", {"B": [{"B": 2}], "window": [{"window": (5, 3)}]})
    options = script.parse(["--dtypes", "float32", "--no-compile"])
    rates = {"copy_gb_per_s": 1.0, "float32_gmac_per_s": 1.0}
    deadline = time.monotonic() + 1000
    found = script.race_operations(ours, timer, rates, options, deadline)
    found += script.growth(ours, timer, rates, options, deadline)
    found += script.race_displacement(ours, timer, options, deadline)
    monkeypatch.setattr(script, "CLIPS", (1, 2, 6, 8, 16))
    found += script.race_blocks(ours, timer, options, deadline)
    for entry in found:
        for name, row in entry["rows"].items():
            assert row["forward"]["ms"] > 0 and row["both"]["ms"] > 0, (name, row)
    late = script.race_operations(ours, timer, rates, options, time.monotonic() - 1)
    assert "time budget" in late[0]["rows"]["keras_stss"]["left out"]


def test_floors_count_what_is_inside(modules):
    floors = modules[0].floors(
        (2, 3, 4, 5, 6), (0, 1), (3, 1), "float16", {"copy_gb_per_s": 1.0, "float16_gmac_per_s": 1.0}
    )
    features, volume = 2 * 3 * 4 * 5 * 6 * 2, 2 * 3 * 4 * 5 * 2 * 3 * 2
    assert floors["bytes_forward"] == pytest.approx((features + volume) / 1e6)
    work = 2 * (3 + 2) * (3 + 4 + 3) * 5 * 6
    assert floors["arithmetic_forward"] == pytest.approx(work / 1e6)
