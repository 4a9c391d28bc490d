"""Spatio-temporal self-similarity behind one signature."""

from numbers import Real

import keras
from keras import ops

from keras_stss.ops import reference
from keras_stss.ops.dispatch import check_implementation, use_native
from keras_stss.ops.sizes import rank

#: Of two vectors alone.
SIMILARITIES = ("cosine", "dot")
#: Those, and one that is normalised over the neighbourhood.
VOLUME_SIMILARITIES = (*SIMILARITIES, "embedded_gaussian")


def stss(
    features,
    temporal_offsets=(-2, -1, 0, 1, 2),
    window=(9, 9),
    similarity="cosine",
    implementation="auto",
    keys=None,
):
    """Spatio-temporal self-similarity of a clip (SELFY, Kwon et al., eq. 1).

    S[b,t,y,x,l,u,v] = sim(F[b,t,y,x], F[b,t+l,y+u,x+v]), where l runs over ``temporal_offsets`` and (u, v) over
    a window centred on zero; zero where t+l, y+u or x+v falls outside the clip. With ``keys`` K the second vector is
    K[b,t+l,y+u,x+v].

    Args:
        features: floating-point tensor (B, T, H, W, C).
        temporal_offsets: distinct integers l, in frames; any set, in the order of the output's L axis.
        window: (U, V), two odd numbers of positions, vertical and horizontal.
        similarity: ``"cosine"`` (vectors divided by sqrt(sum of squares + 1e-6), a sum that has to fit into float32) or
            ``"dot"``; or ``"embedded_gaussian"``: the exponential of the dot product, divided by the sum of those of
            the whole neighbourhood (L, U, V) inside the clip (SELFY, Table 8; projections are the caller's).
        implementation: ``"reference"`` (plain ``keras.ops``, any Keras backend), ``"native"`` (the compiled operation,
            for TensorFlow, in float32, float16 or bfloat16) or ``"auto"``: the native one where it can run, which is
            not inside XLA (``jit_compile=True``) nor where it was not built. See :func:`keras_stss.ops.native_status`.
            The native one knows neither keys nor the embedded Gaussian.
        keys: tensor of the features' shape and dtype, or None.

    Returns:
        Tensor (B, T, H, W, L, U, V) of the input's dtype.

    Raises:
        ValueError: naming the argument that cannot be used.
        RuntimeError: for ``implementation="native"`` where it cannot run, with the reason.
    """
    temporal_offsets, window = check_volume(temporal_offsets, window, similarity, implementation)
    features, dtype = check_features(features, "stss", "SpatioTemporalSelfSimilarity")
    if keys is not None:
        keys = _check_keys(keys, features, dtype, implementation)
    elif similarity in SIMILARITIES and use_native(implementation, "stss", dtype):
        from keras_stss.ops.native import stss as native

        return native.stss(features, temporal_offsets, window, similarity)
    return reference.stss(features, temporal_offsets, window, similarity, keys)


def check_features(features, function, layer):
    """Features as a tensor, and its dtype's name; raises ValueError for what is no clip of features.

    Args:
        features: what ``function`` of ``keras_stss.ops`` was given.
        function, layer: names of the function and of the layer that does the same in a functional model.
    """
    if isinstance(features, keras.KerasTensor):
        raise ValueError(
            f"{function} computes values; in a functional model use the layer keras_stss.layers.{layer}. "
            f"Received: {features}"
        )
    features = ops.convert_to_tensor(features)
    dtype = keras.backend.standardize_dtype(features.dtype)
    if rank(features) != 5 or "float" not in dtype:
        raise ValueError(
            f"features must be floating-point (B, T, H, W, C). Received: shape={features.shape}, dtype={dtype}"
        )
    return features, dtype


def _check_keys(keys, features, dtype, implementation):
    """Keys as a tensor; raises ValueError for those that do not go with the features."""
    if implementation == "native":
        raise ValueError("the native operation takes no keys: use 'auto' or 'reference'. Received: keys, not None")
    keys = ops.convert_to_tensor(keys)
    kind = keras.backend.standardize_dtype(keys.dtype)
    pairs = zip(keys.shape, features.shape) if rank(keys) == 5 else [(0, 1)]
    if kind != dtype or any(None not in pair and pair[0] != pair[1] for pair in pairs):
        raise ValueError(
            f"keys must have shape {tuple(features.shape)} and dtype {dtype} as the features. "
            f"Received: shape={keys.shape}, dtype={kind}"
        )
    return keys


def check_volume(temporal_offsets, window, similarity, implementation):
    """Offsets and window as tuples of int; raises ValueError for what :func:`stss` cannot use."""
    offsets, sides = check_arguments(temporal_offsets, window, similarity, implementation, VOLUME_SIMILARITIES)
    if similarity not in SIMILARITIES and implementation == "native":
        raise ValueError(
            f"the native operation computes {SIMILARITIES} alone: use 'auto' or 'reference' with {similarity!r}. "
            f"Received: implementation={implementation!r}"
        )
    return offsets, sides


def check_arguments(temporal_offsets, window, similarity, implementation, similarities=SIMILARITIES):
    """Offsets and window as tuples of int; raises ValueError for what operations on pairs of features cannot use."""
    offsets = _integers(temporal_offsets)
    if not offsets or len(set(offsets)) != len(offsets):
        raise ValueError(f"temporal_offsets must be distinct integers. Received: temporal_offsets={temporal_offsets}")
    sides = _integers(window)
    if sides is None or len(sides) != 2 or any(side < 1 or side % 2 == 0 for side in sides):
        raise ValueError(f"window must be two odd positive numbers (U, V). Received: window={window}")
    if not isinstance(similarity, str) or similarity not in similarities:
        raise ValueError(f"similarity must be one of {similarities}. Received: similarity={similarity!r}")
    check_implementation(implementation)
    return offsets, sides


def _integers(values):
    """The values as a tuple of int, or None where they are no sequence of integers (of 31 bits)."""
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        return None
    values = tuple(values)
    if any(isinstance(value, bool) or not isinstance(value, Real) or value % 1 for value in values):
        return None
    if any(abs(value) >= 2**31 for value in values):
        return None
    return tuple(int(value) for value in values)
