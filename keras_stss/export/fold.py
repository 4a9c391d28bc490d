"""The model as it is exported: batch normalisation folded into the convolutions, weights its own."""

import keras


def fold_batch_norm(model, dtype=None):
    """Copies a model with the scale of every batch normalisation inside the kernel before it, for inference alone.

    Of each normalisation one addition is left, and all outputs stay the same to rounding. What no layer of this package
    normalises stays as it is: a ``keras.layers.BatchNormalization`` of the user's own.

    Args:
        model: functional ``keras.Model``, as :func:`keras_stss.build_model` gives it, or loaded. It is not changed.
        dtype: what the copy computes in, for example ``"float32"`` in the place of a recipe's mixed precision; None
            leaves it as it is.

    Returns:
        ``keras.Model`` of the same inputs and outputs, with variables of the same names and shapes.

    Raises:
        ValueError: for a model that is not functional.
    """

    def copy(layer):
        config = layer.get_config()
        if dtype is not None and "dtype" in config:
            config["dtype"] = dtype
        return layer.__class__.from_config(config)

    folded = keras.models.clone_model(model, clone_function=copy)
    folded.set_weights(model.get_weights())
    for layer in _all_layers(folded):
        if hasattr(layer, "fold_batch_norm"):
            layer.fold_batch_norm()
    return folded


def _all_layers(model):
    """Layers within layers too, each once."""
    return {id(layer): layer for layer in model._flatten_layers(include_self=False)}.values()
