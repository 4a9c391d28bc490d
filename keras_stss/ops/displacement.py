"""Displacement and confidence squeezed from the self-similarity, behind one signature."""

from keras import ops

from keras_stss.ops import reference
from keras_stss.ops.dispatch import use_native
from keras_stss.ops.sizes import sizes
from keras_stss.ops.soft_argmax import mean_displacement
from keras_stss.ops.stss import check_arguments, check_features

#: Places in the window are numbered in 32 bits.
LARGEST_WINDOW = 2**15


def displacement(
    features,
    temporal_offsets=(1,),
    window=(15, 15),
    similarity="cosine",
    sigma=5.0,
    temperature=0.01,
    implementation="auto",
):
    """Where each position moves to, and how surely: correlation and kernel soft-argmax (MotionSqueeze, eq. 1 to 5).

    With s the rectified self-similarity max(S[b,t,y,x,l,u,v], 0) of :func:`keras_stss.ops.stss` (which is 0 outside
    the map) and p* = (u*, v*) its first maximum over the window, the displacement is the expectation of (u, v) under

        softmax over (u, v) of exp(-((u - u*)² + (v - v*)²) / (2 sigma²)) · s[u, v] / temperature

    and the confidence is s[u*, v*]. No gradient goes through the choice of p*; where maxima tie, the first takes the
    confidence's gradient. A frame that has no partner t+l in the clip gets zeros. Half precision is widened to float32
    before anything is computed; only the result is rounded.

    Args:
        features: floating-point tensor (B, T, H, W, C).
        temporal_offsets: distinct integers l, in frames.
        window: (U, V), two odd numbers of positions, vertical and horizontal.
        similarity: ``"cosine"`` or ``"dot"``.
        sigma: standard deviation of the Gaussian around the maximum, in positions; None for the plain soft-argmax.
        temperature: divisor of the scores before the softmax; the smaller, the nearer to the argmax.
        implementation: ``"native"`` (one compiled operation that never holds the volume), ``"reference"`` (plain
            ``keras.ops``, any Keras backend) or ``"auto"`` (the fastest there is).

    Returns:
        Tensor (B, T, H, W, L, 3) of the input's dtype: horizontal and vertical displacement divided by the largest
        one, V // 2 and U // 2 (so in [-1, 1]; 0 for a side of 1), and confidence.

    Raises:
        ValueError: naming the argument that cannot be used.
        RuntimeError: where ``implementation="native"`` and the operation cannot run; with the reason.
    """
    offsets, window = check_arguments(temporal_offsets, window, similarity, implementation)
    if max(window) >= LARGEST_WINDOW:
        raise ValueError(f"sides of the window must be below {LARGEST_WINDOW}. Received: window={window}")
    check_squeeze(sigma, temperature)
    features, dtype = check_features(features, "displacement", "Displacement")
    if use_native(implementation, "displacement", dtype):
        from keras_stss.ops.native import displacement as native

        return native.displacement(features, offsets, window, similarity, sigma, temperature)
    wide = ops.cast(features, "float32") if dtype in ("float16", "bfloat16") else features
    volume = reference.stss(wide, offsets, window, similarity)  # (B, T, H, W, L, U, V)
    return ops.cast(kernel_soft_argmax(volume, sigma, temperature), dtype)  # (B, T, H, W, L, 3)


def kernel_soft_argmax(volume, sigma=5.0, temperature=0.01):
    """Displacement and confidence of a similarity volume: the definition that :func:`displacement` is held to.

    Args:
        volume: floating-point tensor (…, U, V), U and V known.
        sigma, temperature: see :func:`displacement`.

    Returns:
        Tensor (…, 3): horizontal and vertical displacement divided by the largest one, and confidence.
    """
    check_squeeze(sigma, temperature)
    *lead, rows, columns = sizes(volume)
    flat = ops.relu(ops.reshape(volume, (-1, rows * columns)))  # (N, UV)
    # Of whole numbers: of others Keras looks at signs, bit by bit, which LiteRT cannot do.
    largest = ops.cast(flat >= ops.max(flat, axis=-1, keepdims=True, initial=0), "int32")  # (N, UV)
    best = ops.argmax(largest, axis=-1)[:, None]  # (N, 1)
    down = ops.arange(rows, dtype=best.dtype) - best // columns  # (N, U), steps from the maximum
    right = ops.arange(columns, dtype=best.dtype) - best % columns  # (N, V)
    is_best = ops.equal(ops.arange(rows * columns, dtype=best.dtype), best)  # (N, UV)
    confidence = ops.sum(ops.where(is_best, flat, ops.zeros_like(flat)), axis=-1)  # (N,)
    if sigma is not None:
        fall = [ops.exp(ops.square(ops.cast(side, flat.dtype)) * (-0.5 / sigma**2)) for side in (down, right)]
        flat = flat * ops.reshape(fall[0][:, :, None] * fall[1][:, None, :], (-1, rows * columns))
    moved = mean_displacement(flat, rows, temperature)  # (N, 2)
    return ops.reshape(ops.concatenate([moved, confidence[:, None]], axis=-1), (*lead, 3))


def check_squeeze(sigma, temperature):
    """Raises ValueError for a kernel or temperature that :func:`displacement` cannot use."""
    for name, value in (("sigma", sigma), ("temperature", temperature)):
        if name == "sigma" and value is None:
            continue
        # Whose square has room in float32, in which scores are computed.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-15 < value < 1e15:
            also = ", or None for no kernel" if name == "sigma" else ""
            raise ValueError(f"{name} must be a positive number from 1e-15 to 1e15{also}. Received: {name}={value!r}")
