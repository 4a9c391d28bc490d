"""Functions without weights."""

from keras_stss.ops.dispatch import native_status, portable
from keras_stss.ops.displacement import displacement, kernel_soft_argmax
from keras_stss.ops.shift import temporal_shift
from keras_stss.ops.stss import stss

__all__ = ["displacement", "kernel_soft_argmax", "native_status", "portable", "stss", "temporal_shift"]
