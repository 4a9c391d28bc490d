"""Doors out of Keras: SavedModel, LiteRT, ONNX and OpenVINO, each checked against the model that it was made of."""

from keras_stss.export.doors import FORMATS, export_doors
from keras_stss.export.fold import fold_batch_norm
from keras_stss.export.saved_model import export_run

__all__ = ["FORMATS", "export_doors", "export_run", "fold_batch_norm"]
