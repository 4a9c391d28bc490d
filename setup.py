"""Installation: ``pip install '.[cpu]'`` or ``pip install '.[gpu]'``.

The native library is compiled on the way, for the TensorFlow that is installed, or for TENSORFLOW below where none is
yet. Where it cannot be compiled, the installation goes on without it: ``python -m keras_stss.ops.native.build --show``
says why, and so does its first use. ``KERAS_STSS_NATIVE=0`` leaves it out.
"""

import os
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
NATIVE = Path("keras_stss", "ops", "native")
TENSORFLOW = "2.21.*"

native_build = SimpleNamespace(**runpy.run_path(str(HERE / NATIVE / "build.py")))


class BuildWithNative(build_py):
    """Copies the modules and the configs, and compiles the native library beside them."""

    def run(self):
        folder = HERE / NATIVE if self.editable_mode else Path(self.build_lib, NATIVE)
        if not self.editable_mode:
            # What an earlier build left in build/ would go into the wheel.
            shutil.rmtree(folder.parent, ignore_errors=True)
        super().run()
        for config, copy in self._configs():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(config, copy)
        print(native_build.describe(native_build.build_or_record(folder)), file=sys.stderr)

    def _configs(self):
        """(file, its place in the package): a checkout has them beside the package, a wheel in it."""
        files = [] if self.editable_mode else sorted((HERE / "configs").rglob("*.yaml"))
        return [(file, Path(self.build_lib, "keras_stss", file.relative_to(HERE))) for file in files]

    def get_outputs(self, include_bytecode=1):
        made = [Path(self.build_lib, NATIVE, name) for name in (native_build.LIBRARY, native_build.RECORD)]
        made += [copy for _, copy in self._configs()]
        return super().get_outputs(include_bytecode) + [str(path) for path in made if path.is_file()]


class PlatformDistribution(Distribution):
    """Its wheels are for one kind of machine."""

    def has_ext_modules(self):
        return True


def build_requirements():
    """What the build needs beside setuptools: a TensorFlow to compile for, where there is no fitting one."""
    # Only when pip asks (it runs egg_info for that), since setuptools itself would install it there and then.
    if "egg_info" not in sys.argv or os.environ.get("KERAS_STSS_NATIVE") == "0":
        return []
    try:
        native_build.find_compiler()
    except native_build.BuildError:
        return []
    installed = native_build.installed_tensorflow()
    fits = installed and re.match(re.escape(TENSORFLOW).replace(r"\*", ""), installed.version)
    return [] if fits else [f"tensorflow-cpu=={TENSORFLOW}"]


setup(
    name="keras-stss",
    version="0.1.0",
    description="Motion-aware video recognition for Keras: SELFY, MotionSqueeze, STM, TSN and TSM",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["keras_stss", "keras_stss.*"]),
    package_data={"keras_stss.ops": ["cc/*.h", "cc/*.cc", "cc/*.cu", "cc/*.cuh"]},
    cmdclass={"build_py": BuildWithNative},
    distclass=PlatformDistribution,
    setup_requires=build_requirements(),
    python_requires=">=3.10,<3.13",
    # TensorFlow comes as one of two wheels, so it is an extra: cpu or gpu.
    install_requires=[
        "av>=14",
        "keras>=3.12",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "pillow>=10",
        "pydantic>=2.6",
        "pyyaml>=6",
        "rich>=13",
    ],
    extras_require={
        "cpu": [f"tensorflow-cpu=={TENSORFLOW}", "tensorboard"],
        "gpu": [f"tensorflow[and-cuda]=={TENSORFLOW}", "tensorboard"],
        "visualize": ["scikit-learn>=1.4"],
        # Beside SavedModel and LiteRT, which TensorFlow writes by itself (docs/export.md).
        "onnx": ["onnx>=1.18", "onnxruntime>=1.20", "tf2onnx>=1.17"],
        "openvino": ["openvino>=2025.0"],
        "test": ["import-linter>=2", "pytest>=8", "ruff>=0.9", "keras-stss[onnx,openvino,visualize]"],
    },
    entry_points={"console_scripts": ["keras-stss=keras_stss.cli:main"]},
)
