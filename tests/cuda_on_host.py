"""The CUDA kernels, built to run on the host (see cc/cuda_on_host.h), and what they must compute, in float64.

``python tests/cuda_on_host.py LIBRARY`` checks a library over a small table; the sanitizers' run does that.
"""

import concurrent.futures
import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

TESTS = Path(__file__).resolve().parent
SOURCES = TESTS.parent / "keras_stss" / "ops" / "cc"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
#: Largest error beside float64 over the same stored values, by the largest value: forward, gradient.
TOLERANCE = {"float32": (2e-6, 2e-6), "float16": (1e-3, 2e-3), "bfloat16": (8e-3, 1.6e-2)}
EPSILON = 1e-6


def build(folder, *flags):
    """Compiles the kernels as C++ into a shared library in ``folder``; returns its path."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    sources = [SOURCES / "stss_cuda.cu", SOURCES / "displacement_cuda.cu", TESTS / "cc" / "cuda_library.cc"]
    common = [compiler, "-std=c++17", "-O1", "-fPIC", "-fno-strict-aliasing", "-Wall", "-Wno-unknown-pragmas", *flags]
    common += ["-DKERAS_STSS_ON_HOST", f"-I{TESTS / 'cc'}", f"-I{SOURCES}"]
    objects = [Path(folder) / f"{source.stem}.o" for source in sources]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [[*common, "-x", "c++", "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
        list(pool.map(lambda job: subprocess.run(job, check=True), jobs))
    library = Path(folder) / "kernels.so"
    subprocess.run([compiler, "-shared", *flags, *map(str, objects), "-o", str(library)], check=True)
    return library


class Kernels:
    """Calls the library's operations with NumPy arrays; outputs start as NaN."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))

    def stss(self, features, offsets, window, cosine):
        output = (*features.shape[:4], len(offsets), *window)
        return self._call("stss_forward", [features], output, offsets, window, cosine)

    def stss_gradient(self, features, gradient, offsets, window, cosine):
        return self._call("stss_backward", [features, gradient], features.shape, offsets, window, cosine)

    def displacement(self, features, offsets, window, cosine, settings):
        output = (*features.shape[:4], len(offsets), 3)
        return self._call("displacement_forward", [features], output, offsets, window, cosine, settings)

    def displacement_gradient(self, features, gradient, offsets, window, cosine, settings):
        inputs = [features, gradient]
        return self._call("displacement_backward", inputs, features.shape, offsets, window, cosine, settings)

    def _call(self, name, inputs, output_shape, offsets, window, cosine, settings=None):
        features = inputs[0]
        dtype = list(DTYPES.values()).index(features.dtype.type)
        sizes = np.array([*features.shape, len(offsets), *window, cosine], np.int64)
        offsets = np.array(offsets, np.int64)
        count = getattr(self.library, f"{name}_workspace")
        count.restype = ctypes.c_size_t
        # Filled with NaN, so that what is read before it is written shows.
        workspace = np.full(count(_pointer(sizes), _pointer(offsets), dtype), 0xFF, np.uint8)
        output = np.full(output_shape, np.nan, features.dtype)
        extra = [] if settings is None else [_pointer(np.array(settings, np.float32))]
        buffers = [_pointer(np.ascontiguousarray(array)) for array in (*inputs, output, workspace)]
        error = getattr(self.library, name)(_pointer(sizes), _pointer(offsets), *extra, dtype, *buffers, None)
        if error:
            raise RuntimeError(f"{name} returned CUDA error {error}")
        return output


def _pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def random(rng, shape, dtype):
    return rng.normal(size=shape).astype(DTYPES[dtype])


def stss(features, offsets, window, cosine, gradient=None):
    """(volume, gradient of the features) in float64, by a loop over frames and displacements."""
    features = features.astype(np.float64)
    frames, height, width = features.shape[1:4]
    norms = 1.0 / np.sqrt(np.sum(features**2, -1, keepdims=True) + EPSILON) if cosine else 1.0
    vectors = features * norms
    volume = np.zeros((*features.shape[:4], len(offsets), *window))
    slopes = np.zeros_like(vectors)
    for time in range(frames):
        for number, offset in enumerate(offsets):
            if not 0 <= time + offset < frames:
                continue
            for u, v in np.ndindex(*window):
                rows, other_rows = _meeting(u - window[0] // 2, height)
                columns, other_columns = _meeting(v - window[1] // 2, width)
                query = (slice(None), time, rows, columns)
                key = (slice(None), time + offset, other_rows, other_columns)
                volume[(*query, number, u, v)] = np.sum(vectors[query] * vectors[key], -1)
                if gradient is not None:
                    weights = gradient[(*query, number, u, v)][..., None].astype(np.float64)
                    slopes[query] += weights * vectors[key]
                    slopes[key] += weights * vectors[query]
    if cosine:
        slopes = norms * (slopes - vectors * np.sum(vectors * slopes, -1, keepdims=True))
    return volume, slopes


def _meeting(step, size):
    """Slices of the positions x and x + step that are both inside [0, size)."""
    count = max(size - abs(step), 0)
    first = max(-step, 0) if count else 0
    return slice(first, first + count), slice(first + step if count else 0, first + step + count if count else 0)


def displacement(features, offsets, window, cosine, settings, upstream):
    """(output, gradient of the features) in float64."""
    sigma, temperature = settings
    volume, _ = stss(features, offsets, window, cosine)
    scores = np.maximum(volume, 0).reshape(*volume.shape[:5], window[0] * window[1])  # (B, T, H, W, L, UV)
    best = np.argmax(scores, -1)[..., None]
    rows, columns = np.divmod(np.arange(scores.shape[-1]), window[1])
    squares = (rows - best // window[1]) ** 2 + (columns - best % window[1]) ** 2
    kernel = np.exp(-squares / (2.0 * sigma**2))
    exponents = scores * kernel / temperature
    weights = np.exp(exponents - np.max(exponents, -1, keepdims=True))
    weights /= np.sum(weights, -1, keepdims=True)
    right = (columns - window[1] // 2) / max(window[1] // 2, 1)
    down = (rows - window[0] // 2) / max(window[0] // 2, 1)
    output = np.stack([weights @ right, weights @ down, np.take_along_axis(scores, best, -1)[..., 0]], -1)
    upstream = upstream.astype(np.float64)
    slope = upstream[..., 0:1] * right + upstream[..., 1:2] * down
    gradient = weights * (slope - np.sum(weights * slope, -1, keepdims=True)) * kernel / temperature
    there = np.take_along_axis(gradient, best, -1) + upstream[..., 2:3]
    np.put_along_axis(gradient, best, there, -1)
    gradient[scores <= 0] = 0
    for number, offset in enumerate(offsets):
        for time in range(features.shape[1]):
            if not 0 <= time + offset < features.shape[1]:
                output[:, time, :, :, number] = 0
    return output, stss(features, offsets, window, cosine, gradient.reshape(volume.shape))[1]


def check(kernels, dtype, shape, offsets, window, cosine, settings=(5.0, 0.1)):
    """Every operation and gradient against float64; raises AssertionError with the error found."""
    rng = np.random.default_rng(sum(shape) + 7 * cosine)
    features = random(rng, shape, dtype)
    case = (dtype, shape, offsets, window, cosine)
    tolerance = TOLERANCE[dtype]
    gradient = random(rng, (*shape[:4], len(offsets), *window), dtype)
    volume, slopes = stss(features, offsets, window, cosine, gradient)
    close(kernels.stss(features, offsets, window, cosine), volume, tolerance[0], ("volume", *case))
    found = kernels.stss_gradient(features, gradient, offsets, window, cosine)
    close(found, slopes, tolerance[1], ("gradient", *case))
    # Half precision in scores of a dot product is a large error in the exponents: smaller features, same test.
    small = features if cosine else (features * DTYPES[dtype](0.5)).astype(features.dtype)
    upstream = random(rng, (*shape[:4], len(offsets), 3), dtype)
    output, slopes = displacement(small, offsets, window, cosine, settings, upstream)
    close(kernels.displacement(small, offsets, window, cosine, settings), output, tolerance[0], ("squeezed", *case))
    found = kernels.displacement_gradient(small, upstream, offsets, window, cosine, settings)
    close(found, slopes, 4 * tolerance[1], ("its gradient", *case))


def close(found, wanted, tolerance, case):
    """Finite everywhere and within tolerance times the largest value wanted."""
    assert found.shape == wanted.shape, (case, found.shape, wanted.shape)
    if found.size:
        error = np.max(np.abs(found.astype(np.float64) - wanted))
        assert error <= tolerance * np.max(np.abs(wanted)) + 1e-9, (case, error, np.max(np.abs(wanted)))


#: shape, offsets, window: small, but with all borders, paths and empty sizes.
SMALL = [
    ((1, 2, 9, 2, 7), (1, -3), (3, 11)),
    ((1, 2, 3, 9, 16), (-1,), (5, 3)),
    ((1, 1, 2, 2, 132), (0,), (1, 3)),
    ((1, 1, 2, 2, 0), (0,), (3, 3)),
    ((0, 2, 3, 3, 4), (1,), (3, 3)),
]


def main():
    kernels = Kernels(sys.argv[1])
    for dtype in DTYPES:
        for shape, offsets, window in SMALL:
            if shape[-1] == 0 or offsets == (0,):  # no gradient to compare: a vector's cosine with itself is constant
                kernels.stss(np.zeros(shape, DTYPES[dtype]), offsets, window, True)
            check(kernels, dtype, shape, offsets, window, cosine=shape[-1] == 16)


if __name__ == "__main__":
    main()
