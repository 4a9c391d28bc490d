"""Consensus over frames and classification head."""

import keras
from keras import ops


def classify(features, classes, dropout=0.5):
    """Average over positions, dropout, average consensus over frames, linear layer (TSN, Wang et al., ECCV 2016).

    TSN averages the frames' logits; a linear layer on averaged features gives the same numbers for one product a
    clip. Dropout acts on each frame's features, as in TSN.

    Args:
        features: Keras tensor (B, T, h, w, c).
        classes: number of classes.
        dropout: rate; 0 leaves the layer out.

    Returns:
        Keras tensor (B, classes) of float32 logits.
    """
    x = ops.mean(features, axis=(2, 3))  # (B, T, c)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    x = ops.mean(x, axis=1)  # (B, c)
    initializer = keras.initializers.RandomNormal(stddev=0.001)
    return keras.layers.Dense(classes, kernel_initializer=initializer, dtype="float32", name="logits")(x)
