"""Functional models."""

from keras_stss.models.build import build_model, load_model, transfer_weights
from keras_stss.models.ensemble import ensemble
from keras_stss.models.features import feature_extractor
from keras_stss.models.presets import list_models
from keras_stss.models.weights.pretrained import load_pretrained

__all__ = [
    "build_model",
    "ensemble",
    "feature_extractor",
    "list_models",
    "load_model",
    "load_pretrained",
    "transfer_weights",
]
