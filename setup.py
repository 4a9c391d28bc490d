"""Installation: ``pip install .[cpu]`` or ``pip install .[gpu]``."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
TENSORFLOW = "2.21.*"

setup(
    name="keras-stss",
    version="0.1.0",
    description="Motion-aware video recognition for Keras: SELFY self-similarity, TSN and TSM",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    packages=find_packages(include=["keras_stss", "keras_stss.*"]),
    python_requires=">=3.10,<3.13",
    # TensorFlow comes as one of two wheels, so it is an extra: cpu or gpu.
    install_requires=["av>=14", "keras>=3.12", "numpy>=1.26", "pydantic>=2.6", "pyyaml>=6", "rich>=13"],
    extras_require={
        "cpu": [f"tensorflow-cpu=={TENSORFLOW}", "tensorboard"],
        "gpu": [f"tensorflow[and-cuda]=={TENSORFLOW}", "tensorboard"],
        "test": ["import-linter>=2", "pytest>=8", "ruff>=0.9"],
    },
    entry_points={"console_scripts": ["keras-stss=keras_stss.cli:main"]},
)
