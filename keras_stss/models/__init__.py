"""Functional models."""

from keras_stss.models.build import build_model, load_model, transfer_weights

__all__ = ["build_model", "load_model", "transfer_weights"]
