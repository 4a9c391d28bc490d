"""The native displacement operation as TensorFlow sees it."""

import math

import tensorflow as tf

from keras_stss.ops.native import library


def displacement(features, temporal_offsets, window, similarity, sigma, temperature):
    """See :func:`keras_stss.ops.displacement`; the arguments are checked there."""
    operation = library.load().keras_stss_displacement
    parts = [
        operation(
            features=features,
            temporal_offsets=offsets,
            window=list(window),
            cosine=similarity == "cosine",
            sigma=math.inf if sigma is None else float(sigma),
            temperature=float(temperature),
        )
        for offsets in library.parts(temporal_offsets)
    ]
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=4)


@tf.RegisterGradient("KerasStss>Displacement")
def _gradient(op, upstream):
    names = ("temporal_offsets", "window", "cosine", "sigma", "temperature")
    attributes = {name: op.get_attr(name) for name in names}
    return library.load().keras_stss_displacement_grad(features=op.inputs[0], gradient=upstream, **attributes)


@tf.RegisterGradient("KerasStss>DisplacementGrad")
def _second_gradient(op, upstream):
    raise NotImplementedError(
        "the native displacement operation has no second-order gradient; use implementation='reference' where "
        "gradients of gradients are needed"
    )
