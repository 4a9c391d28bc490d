"""PyTorch's side of the benchmark: what keras_stss/bench/worker.py times in the environment of `make peers`."""

import importlib.metadata
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import torch_blocks
import torch_data
import torch_stss

torch.set_num_threads(len(os.sched_getaffinity(0)))
PACKAGES = ("torch", "spatial-correlation-sampler", "Pillow", "opencv-python-headless", "torchcodec")
INSTALLED = {distribution.name.replace("_", "-") for distribution in importlib.metadata.distributions()}
VERSIONS = {name: importlib.metadata.version(name) for name in PACKAGES if name in INSTALLED}
CONTESTANTS = {**torch_stss.CONTESTANTS, **torch_blocks.CONTESTANTS, **torch_data.CONTESTANTS}
