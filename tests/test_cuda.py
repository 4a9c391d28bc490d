"""The CUDA kernels where there is no GPU: they compile, and run on the host they compute what they must."""

import os
import re
import shutil
import subprocess
import sys

import cuda_on_host
import numpy as np
import pytest

#: As keras_stss.ops.native.build compiles them: machine code for Ampere and Hopper, PTX for newer ones.
NVCC_FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr"]
NVCC_FLAGS += [
    f"-gencode=arch=compute_{arch},code={kind}_{arch}" for arch, kind in ((80, "sm"), (90, "sm"), (90, "compute"))
]

#: shape, offsets, window
CASES = {
    "one tile": ((1, 2, 8, 8, 16), (0, 1), (9, 9)),
    "borders of tiles": ((1, 3, 10, 9, 20), (-1, 0, 2), (9, 7)),
    "odd sizes, offset beyond the clip": ((2, 2, 5, 11, 7), (1, -5), (3, 5)),
    "more channels than a block gathers": ((1, 2, 9, 3, 136), (1,), (5, 3)),
    "the same, without 16-byte rows": ((1, 2, 3, 2, 130), (-1,), (3, 3)),
    "wide window": ((1, 2, 9, 13, 24), (1,), (15, 15)),
    "window larger than the map, in two groups": ((1, 1, 3, 2, 5), (0,), (7, 21)),
    "uneven groups of displacements": ((1, 2, 9, 11, 8), (1,), (11, 21)),
    "one displacement": ((1, 2, 4, 5, 8), (1,), (1, 1)),
    "as many offsets as there may be": ((1, 2, 2, 3, 4), tuple(range(-32, 32)), (1, 3)),
    "no batch": ((0, 2, 3, 3, 4), (1,), (3, 3)),
    "no frames": ((2, 0, 3, 3, 4), (1,), (3, 3)),
    "no rows": ((1, 2, 0, 3, 4), (1,), (3, 3)),
    "no channels": ((1, 2, 3, 3, 0), (1,), (3, 3)),
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    return cuda_on_host.Kernels(cuda_on_host.build(tmp_path_factory.mktemp("kernels")))


@pytest.mark.parametrize("cosine", [True, False], ids=["cosine", "dot"])
@pytest.mark.parametrize("dtype", cuda_on_host.DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_kernels_against_float64(kernels, case, dtype, cosine):
    cuda_on_host.check(kernels, dtype, *CASES[case], cosine)


def test_a_window_that_does_not_fit_into_shared_memory(kernels):
    cuda_on_host.check(kernels, "float32", (1, 2, 2, 3, 4), (1,), (17, 35), cosine=True)


@pytest.mark.parametrize("sigma", [np.inf, 1.0])
def test_kernels_of_displacement(kernels, sigma):
    cuda_on_host.check(kernels, "float32", (1, 2, 5, 6, 8), (1,), (5, 5), cosine=True, settings=(sigma, 0.05))


@pytest.mark.parametrize("dtype", cuda_on_host.DTYPES)
def test_outside_the_clip_is_zero_whatever_the_query(kernels, dtype):
    features = np.full((1, 2, 3, 3, 8), np.nan, cuda_on_host.DTYPES[dtype])
    volume = kernels.stss(features, (1, -1), (3, 5), True).astype(np.float64)
    inside, _ = cuda_on_host.stss(np.ones(features.shape), (1, -1), (3, 5), True)
    assert np.all(np.isnan(volume[inside != 0])) and np.all(volume[inside == 0] == 0)
    assert np.all(
        np.isnan(kernels.displacement(features, (1,), (3, 3), True, (5.0, 0.1)).astype(np.float64)[:, 0, ..., :2])
    )


def test_a_nan_reaches_only_those_that_see_it(kernels):
    rng = np.random.default_rng(3)
    features = cuda_on_host.random(rng, (1, 2, 8, 8, 8), "float32")
    features[0, 1, 2, 3] = np.nan
    volume = kernels.stss(features, (1,), (3, 3), True)
    wanted, _ = cuda_on_host.stss(features, (1,), (3, 3), True)
    assert np.array_equal(np.isnan(volume), np.isnan(wanted)) and 0 < np.isnan(volume).sum() < volume.size


@pytest.mark.parametrize("dtype", cuda_on_host.DTYPES)
@pytest.mark.parametrize(("shape", "window"), [((1, 2, 9, 5, 36), (5, 9)), ((1, 2, 2, 9, 132), (1, 11))])
def test_no_race(kernels, shape, window, dtype, monkeypatch):
    """Threads and blocks in any order, and any number of blocks, give the same bits."""
    rng = np.random.default_rng(5)
    features = cuda_on_host.random(rng, shape, dtype)
    gradient = cuda_on_host.random(rng, (*shape[:4], 1, *window), dtype)
    upstream = cuda_on_host.random(rng, (*shape[:4], 1, 3), dtype)
    found = set()
    for order in range(3):
        monkeypatch.setenv("KERAS_STSS_ORDER", str(order))
        monkeypatch.setenv("KERAS_STSS_GRID", "1" if order % 2 else "1000")
        results = (
            kernels.stss(features, (1,), window, True),
            kernels.stss_gradient(features, gradient, (1,), window, True),
            kernels.displacement(features, (1,), window, True, (5.0, 0.1)),
            kernels.displacement_gradient(features, upstream, (1,), window, True, (5.0, 0.1)),
        )
        found.add(b"".join(result.tobytes() for result in results))
    assert len(found) == 1


def test_too_many_offsets_are_refused(kernels):
    with pytest.raises(RuntimeError, match="CUDA error 1"):
        kernels.stss(np.zeros((1, 2, 2, 2, 4), np.float32), tuple(range(65)), (1, 1), True)


def test_sanitizers(tmp_path):
    """No access outside global or shared memory, nothing undefined."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("no g++")
    asked = [[compiler, f"-print-file-name={name}"] for name in ("libasan.so", "libubsan.so")]
    runtimes = [subprocess.run(ask, capture_output=True, text=True).stdout.strip() for ask in asked]
    if not all(os.path.isabs(path) for path in runtimes):
        pytest.skip("g++ has no sanitizers")
    library = cuda_on_host.build(tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    environment = {**os.environ, "LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, cuda_on_host.__file__, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]


def test_nvcc_compiles_for_every_target(tmp_path):
    """For sm_80, sm_90 and newer through PTX, without a warning, and with next to nothing spilled to local memory."""
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("no nvcc")
    flags = [*NVCC_FLAGS, "-Werror", "all-warnings", "-Xptxas", "-v", "-c"]
    names = ["stss_cuda", "displacement_cuda"]
    running = [
        subprocess.Popen(
            [nvcc, *flags, str(cuda_on_host.SOURCES / f"{name}.cu"), "-o", str(tmp_path / f"{name}.o")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for process in running:
        report = process.communicate()[1]
        assert process.returncode == 0, report[-4000:]
        assert "for 'sm_80'" in report and "for 'sm_90'" in report
        spilled = [int(count) for count in re.findall(r"(\d+) bytes spill", report)]
        assert spilled and max(spilled) <= 32, sorted(spilled)[-8:]
