"""Functional models."""

from keras_stss.models.build import build_model, load_model, transfer_weights
from keras_stss.models.pretrained import load_pretrained

__all__ = ["build_model", "load_model", "load_pretrained", "transfer_weights"]
