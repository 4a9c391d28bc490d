"""The compiled self-similarity and its gradient."""

import tensorflow as tf

from keras_stss.ops.native import library


def stss(features, temporal_offsets, window, similarity):
    """S[b,t,y,x,l,u,v] = sim(F[b,t,y,x], F[b,t+l,y+u,x+v]), zero outside the clip (SELFY, eq. 1).

    Args:
        features: tensor (B, T, H, W, C) of float32, float16 or bfloat16; products are summed in float32.
        temporal_offsets: integers l, in frames.
        window: (U, V), two odd numbers of positions.
        similarity: ``"cosine"`` or ``"dot"``.

    Returns:
        Tensor (B, T, H, W, L, U, V) of the input's dtype. It can be differentiated once.
    """
    operation = library.load().keras_stss_stss
    parts = [
        operation(features=features, temporal_offsets=offsets, window=window, cosine=similarity == "cosine")
        for offsets in library.parts(temporal_offsets)
    ]
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=4)


@tf.RegisterGradient("KerasStss>Stss")
def _gradient(operation, gradient):
    """Of the features, which are both the positions compared and those compared with."""
    return library.load().keras_stss_stss_grad(
        features=operation.inputs[0],
        gradient=gradient,
        temporal_offsets=operation.get_attr("temporal_offsets"),
        window=operation.get_attr("window"),
        cosine=operation.get_attr("cosine"),
    )


@tf.RegisterGradient("KerasStss>StssGrad")
def _second_order(operation, gradient):
    raise NotImplementedError(
        "the native stss has no second-order gradient. For gradients of gradients call stss with "
        "implementation='reference' (or set KERAS_STSS_NATIVE=0)"
    )
