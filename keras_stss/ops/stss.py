"""Spatio-temporal self-similarity behind one signature."""

from keras_stss.ops import reference

SIMILARITIES = ("cosine", "dot")
IMPLEMENTATIONS = ("auto", "reference")


def stss(
    features,
    temporal_offsets=(-2, -1, 0, 1, 2),
    window=(9, 9),
    similarity="cosine",
    implementation="auto",
):
    """Spatio-temporal self-similarity of a clip (SELFY, Kwon et al., eq. 1).

    S[b,t,y,x,l,u,v] = sim(F[b,t,y,x], F[b,t+l,y+u,x+v]), where l runs over ``temporal_offsets`` and (u, v) over
    a window centred on zero; zero where t+l, y+u or x+v falls outside the clip.

    Args:
        features: floating-point tensor (B, T, H, W, C).
        temporal_offsets: distinct integers l, in frames; any set, in the order of the output's L axis.
        window: (U, V), two odd numbers of positions, vertical and horizontal.
        similarity: ``"cosine"`` (vectors divided by sqrt(sum of squares + 1e-6)) or ``"dot"``.
        implementation: ``"reference"`` (plain ``keras.ops``, any Keras backend) or ``"auto"`` (the fastest there is).

    Returns:
        Tensor (B, T, H, W, L, U, V) of the input's dtype.

    Raises:
        ValueError: naming the argument that cannot be used.
    """
    temporal_offsets, window = check_arguments(temporal_offsets, window, similarity, implementation)
    if len(features.shape) != 5:
        raise ValueError(f"features must have shape (B, T, H, W, C). Received: shape={tuple(features.shape)}")
    return reference.stss(features, temporal_offsets, window, similarity)


def check_arguments(temporal_offsets, window, similarity, implementation):
    """Offsets and window as tuples of int; raises ValueError for what :func:`stss` cannot use."""
    offsets = tuple(int(offset) for offset in temporal_offsets)
    if not offsets or len(set(offsets)) != len(offsets) or list(offsets) != list(temporal_offsets):
        raise ValueError(f"temporal_offsets must be distinct integers. Received: temporal_offsets={temporal_offsets}")
    sides = tuple(window)
    if len(sides) != 2 or any(side != int(side) or side < 1 or side % 2 == 0 for side in sides):
        raise ValueError(f"window must be two odd positive numbers (U, V). Received: window={window}")
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {SIMILARITIES}. Received: similarity={similarity!r}")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {IMPLEMENTATIONS}. Received: implementation={implementation!r}"
        )
    return offsets, tuple(int(side) for side in sides)
