"""Lets spatial-correlation-sampler build beside a PyTorch without CUDA; `make peers` puts this folder on PYTHONPATH.

Its setup asks for CUDA whatever PyTorch there is, and one of its sources includes a CUDA header that it uses with CUDA
alone. Where PyTorch finds no CUDA to build with, the extension loses its CUDA source here, and an empty header of that
name comes first. The C++ code of the CPU stays as it is.
"""

import sys
from pathlib import Path

if any("_in_process.py" in argument for argument in sys.orig_argv):  # pip at work in a package's setup, nothing else
    from torch.utils import cpp_extension

    def _without_cuda(name, sources, define_macros=(), extra_compile_args=None, **options):
        return cpp_extension.CppExtension(
            name,
            [source for source in sources if not source.endswith(".cu")],
            define_macros=[pair for pair in define_macros if pair[0] != "USE_CUDA"],
            extra_compile_args=(extra_compile_args or {}).get("cxx", []),
            include_dirs=[str(Path(__file__).parent)],
            **options,
        )

    if cpp_extension.CUDA_HOME is None:
        cpp_extension.CUDAExtension = _without_cuda
