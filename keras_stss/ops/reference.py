"""Spatio-temporal self-similarity in plain ``keras.ops``: the definition that every other form is held to."""

from keras import ops

from keras_stss.ops.sizes import sizes

#: Added to the sum of squares under the root, as in the authors' released code.
COSINE_EPSILON = 1e-6


def l2_normalize(features):
    """Divides each position's vector by sqrt(sum of squares + 1e-6); computed in float32 for half precision."""
    wide = ops.cast(features, "float32")
    squares = ops.sum(ops.square(wide), axis=-1, keepdims=True)
    return ops.cast(wide * ops.rsqrt(squares + COSINE_EPSILON), features.dtype)


def stss(features, temporal_offsets, window, similarity):
    """S[b,t,y,x,l,u,v] = sim(F[b,t,y,x], F[b,t+l,y+u,x+v]), zero outside the clip (SELFY, eq. 1).

    One dense product per offset compares all pairs of positions of two frames; the window is then cut out of
    it by :func:`_band`. The input is never unfolded.
    """
    if similarity == "cosine":
        features = l2_normalize(features)
    batch, time, height, width, channels = sizes(features)
    positions = ops.reshape(features, (batch, time, height * width, channels))  # (B, T, HW, C)
    volumes = []
    for offset in temporal_offsets:
        others = _shift_time(positions, offset, time)  # (B, T, HW, C)
        product = ops.matmul(positions, ops.transpose(others, (0, 1, 3, 2)))  # (B, T, HW, HW)
        product = ops.reshape(product, (batch * time, height, width, height, width))
        volume = _band(product, window)  # (BT, H, W, U, V)
        volumes.append(ops.reshape(volume, (batch, time, height, width, *window)))
    return ops.stack(volumes, axis=4)  # (B, T, H, W, L, U, V)


def _shift_time(positions, offset, time):
    """Frame t of the result is frame t + offset of the input; zero where there is none."""
    if offset == 0:
        return positions
    before, after = max(-offset, 0), max(offset, 0)
    padded = ops.pad(positions, ((0, 0), (before, after), (0, 0), (0, 0)))
    return padded[:, after : after + time] if after else padded[:, :time]


def _band(product, window):
    """(N, H, W, H, W) of all pairs → (N, H, W, U, V) of the pairs inside the window."""
    rows, columns = window
    product = ops.transpose(product, (0, 1, 3, 2, 4))  # (N, H, H', W, W')
    product = _diagonals(product, columns)  # (N, H, H', W, V)
    product = ops.transpose(product, (0, 3, 4, 1, 2))  # (N, W, V, H, H')
    product = _diagonals(product, rows)  # (N, W, V, H, U)
    return ops.transpose(product, (0, 3, 1, 4, 2))  # (N, H, W, U, V)


def _diagonals(matrices, count):
    """(…, S, S) → (…, S, count): element [s, d] is matrices[s, s + d - count // 2], zero outside.

    Padding each row by the radius and then reading the rows one element longer than they are moves row s by s
    places, so that diagonals become columns: a pad, a reshape and a slice, with no index tensor and a gradient
    of the same form.
    """
    *lead, size, _ = sizes(matrices)
    radius = count // 2
    no_padding = [(0, 0)] * len(lead)
    matrices = ops.pad(matrices, (*no_padding, (0, 0), (radius, radius)))  # (…, S, S + 2r)
    flat = ops.reshape(matrices, (*lead, size * (size + 2 * radius)))
    # S more elements make S rows of S + 2r + 1; pad by a fixed frame because S may be unknown while tracing.
    flat = ops.concatenate([flat, ops.zeros_like(matrices[..., 0])], axis=-1)
    skewed = ops.reshape(flat, (*lead, size, size + 2 * radius + 1))
    return skewed[..., :count]
