"""The CUDA kernels as PyTorch operations: built with nvcc into a shared library, called through ctypes."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "keras_stss" / "ops" / "cc"
LAUNCHER = ROOT / "tests" / "cc" / "cuda_library.cc"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def build(folder, capability):
    """Compiles the kernels for one architecture, such as (9, 0); returns the library's path and nvcc's report."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    arch = "".join(map(str, capability))
    library = Path(folder) / "kernels.so"
    common = [nvcc, "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-lineinfo", "-Xcompiler", "-fPIC"]
    common += [f"-gencode=arch=compute_{arch},code=sm_{arch}", f"-I{SOURCES}"]
    sources = [SOURCES / "stss_cuda.cu", SOURCES / "displacement_cuda.cu", LAUNCHER]
    objects = [Path(folder) / f"{source.stem}.o" for source in sources]
    jobs = []
    for source, target in zip(sources, objects, strict=True):
        command = [*common, "-Xptxas", "-v", "-c", str(source), "-o", str(target)]
        jobs.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    report = "".join(job.communicate()[1] for job in jobs)
    if any(job.returncode for job in jobs):
        raise RuntimeError(f"nvcc failed:\n{report[-4000:]}")
    subprocess.run([nvcc, "-shared", *map(str, objects), "-o", str(library)], check=True)
    return library, report


class Library:
    """The launchers of tests/cc/cuda_library.cc for tensors (B, T, H, W, C), on the current stream."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))

    def run(self, name, inputs, output_shape, offsets, window, cosine, settings=None):
        features = inputs[0]
        if features.dtype not in DTYPES or any(not tensor.is_contiguous() for tensor in inputs):
            received = [(tensor.dtype, tensor.stride()) for tensor in inputs]
            raise ValueError(f"inputs must be contiguous, of {DTYPES}. Received: {received}")
        dtype = DTYPES.index(features.dtype)
        sizes = (ctypes.c_int64 * 9)(*features.shape, len(offsets), *window, int(cosine))
        steps = (ctypes.c_int64 * len(offsets))(*offsets)
        count = getattr(self.library, f"{name}_workspace")
        count.restype = ctypes.c_size_t
        workspace = torch.empty(count(sizes, steps, dtype), dtype=torch.uint8, device=features.device)
        output = torch.empty(output_shape, dtype=features.dtype, device=features.device)
        stream = torch.cuda.current_stream().cuda_stream if features.is_cuda else None
        extra = [] if settings is None else [(ctypes.c_float * 2)(*settings)]
        buffers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (*inputs, output, workspace)]
        error = getattr(self.library, name)(sizes, steps, *extra, dtype, *buffers, ctypes.c_void_p(stream))
        if error:
            raise RuntimeError(f"{name} returned CUDA error {error}")
        return output


def operations(library):
    """(stss, displacement) as PyTorch operations with gradients that torch.compile can see past."""
    stss = _operation(library, "stss", lambda window: window)
    displacement = _operation(library, "displacement", lambda _: (3,))

    def call_stss(features, offsets, window, cosine=True):
        return stss(features, list(offsets), list(window), cosine, [])

    def call_displacement(features, offsets, window, cosine=True, sigma=5.0, temperature=0.01):
        return displacement(features, list(offsets), list(window), cosine, [sigma, temperature])

    return call_stss, call_displacement


def _operation(library, name, trailing):
    settings_type = list[float]

    def shape_of(features, offsets, window):
        return (*features.shape[:4], len(offsets), *trailing(window))

    def forward(
        features: torch.Tensor, offsets: list[int], window: list[int], cosine: bool, settings: settings_type
    ) -> torch.Tensor:
        shape = shape_of(features, offsets, window)
        return library.run(f"{name}_forward", [features], shape, offsets, window, cosine, settings or None)

    def backward(
        features: torch.Tensor,
        gradient: torch.Tensor,
        offsets: list[int],
        window: list[int],
        cosine: bool,
        settings: settings_type,
    ) -> torch.Tensor:
        inputs = [features, gradient.contiguous()]
        return library.run(f"{name}_backward", inputs, features.shape, offsets, window, cosine, settings or None)

    forward = torch.library.custom_op(f"keras_stss::{name}", forward, mutates_args=())
    backward = torch.library.custom_op(f"keras_stss::{name}_backward", backward, mutates_args=())
    forward.register_fake(lambda f, offsets, window, cosine, settings: f.new_empty(shape_of(f, offsets, window)))
    backward.register_fake(lambda f, gradient, offsets, window, cosine, settings: torch.empty_like(f))

    def remember(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.arguments = inputs[1:]

    def differentiate(ctx, gradient):
        return (backward(ctx.saved_tensors[0], gradient, *ctx.arguments), None, None, None, None)

    forward.register_autograd(differentiate, setup_context=remember)
    return forward
