"""Functions without weights."""

from keras_stss.ops.shift import temporal_shift
from keras_stss.ops.stss import stss

__all__ = ["stss", "temporal_shift"]
