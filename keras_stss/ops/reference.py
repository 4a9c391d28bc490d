"""Spatio-temporal self-similarity in plain ``keras.ops``: the definition that every other form is held to."""

import keras
import numpy as np
from keras import ops

from keras_stss.ops.sizes import sizes

#: Added to the sum of squares under the root, as in the authors' released code.
COSINE_EPSILON = 1e-6


def l2_normalize(features):
    """Divides each position's vector by sqrt(sum of squares + 1e-6); computed in float32 for half precision."""
    wide = ops.cast(features, keras.backend.result_type(features.dtype, "float32"))
    # Not ops.square: LiteRT's converter would put its own normalisation here, of another epsilon and rank 4 at most.
    squares = ops.sum(wide * wide, axis=-1, keepdims=True)
    return ops.cast(wide * ops.rsqrt(squares + COSINE_EPSILON), features.dtype)


def stss(features, temporal_offsets, window, similarity, keys=None):
    """S[b,t,y,x,l,u,v] = sim(F[b,t,y,x], K[b,t+l,y+u,x+v]), zero outside the clip (SELFY, eq. 1); K is F without keys.

    The input is never unfolded: one matrix product compares two frames at all pairs of their positions, and the
    window is gathered out of it. Without keys the product of frames t and t + d holds offset d of the one frame and
    offset -d of the other, so both come from it.
    """
    if similarity == "embedded_gaussian":
        return embedded_gaussian(features, temporal_offsets, window, keys)
    if similarity == "cosine":
        features, keys = l2_normalize(features), None if keys is None else l2_normalize(keys)
    batch, time, height, width, _ = sizes(features)
    # Further positions, of zeros. The product of the last one with itself is what the window reads outside the map: a
    # zero that no feature takes part in, be it infinite or not a number. Rows of 16 n numbers are the faster ones.
    count = (height * width // 16 + 1) * 16
    queried = _positions(features, count)  # (B, T, N, C)
    others = queried if keys is None else _positions(keys, count)
    places = {
        earlier: ops.convert_to_tensor(_window_places(height, width, window, count, earlier))  # (H * W * U * V,)
        for earlier in {offset >= 0 for offset in temporal_offsets}
    }
    products, volumes = {}, []
    for offset in temporal_offsets:
        distance = _smaller(abs(offset), time)
        pair = abs(offset) if keys is None else offset
        if pair not in products:
            earlier, later = (queried, others) if offset >= 0 else (others, queried)
            products[pair] = _all_pairs(earlier, later, distance)  # (B * (T - d), N²)
        volume = ops.take(products[pair], places[offset >= 0], axis=1)
        volume = ops.reshape(volume, (batch, time - distance, height * width, window[0] * window[1]))
        if offset:
            outside = ops.zeros((batch, distance, height * width, window[0] * window[1]), volume.dtype)
            volume = ops.concatenate([volume, outside] if offset > 0 else [outside, volume], axis=1)
        volumes.append(volume)  # (B, T, HW, UV)
    volume = ops.stack(volumes, axis=3)  # (B, T, HW, L, UV)
    return ops.reshape(volume, (batch, time, height, width, len(volumes), *window))


def _smaller(number, size):
    return min(number, size) if isinstance(size, int) else ops.minimum(number, size)


def embedded_gaussian(queries, temporal_offsets, window, keys=None):
    """exp(Q · K) over its sum in the part of the neighbourhood (L, U, V) that lies inside the clip; zero outside.

    Computed in float32 at least: the exponential makes a rounded product's error a factor.
    """
    wide = keras.backend.result_type(queries.dtype, "float32")
    keys = None if keys is None else ops.cast(keys, wide)
    scores = stss(ops.cast(queries, wide), temporal_offsets, window, "dot", keys)  # (B, T, H, W, L, U, V)
    _, time, height, width, _, rows, columns = sizes(scores)
    frame = _inside(time, np.array(temporal_offsets))[:, None, None, :, None, None]  # (T, 1, 1, L, 1, 1)
    row = _inside(height, np.arange(rows) - rows // 2)[:, None, None, :, None]  # (H, 1, 1, U, 1)
    column = _inside(width, np.arange(columns) - columns // 2)[:, None, None, :]  # (W, 1, 1, V)
    inside = ops.logical_and(frame, ops.logical_and(row, column))  # (T, H, W, L, U, V)
    return ops.cast(softmax_inside(scores, inside), queries.dtype)


def softmax_inside(scores, inside):
    """Scores (…, L, U, V) → the softmax over (L, U, V) of those that are ``inside``, and zeros outside."""
    neighbourhood = {"axis": (-3, -2, -1), "keepdims": True}
    scores = ops.where(inside, scores, ops.full_like(scores, -1e30))
    weights = ops.exp(scores - ops.stop_gradient(ops.max(scores, **neighbourhood)))
    weights = ops.where(inside, weights, ops.zeros_like(weights))
    # A position without any neighbour in the clip, and no other, has a sum below 1.
    return weights / ops.maximum(ops.sum(weights, **neighbourhood), 1.0)


def _inside(size, steps):
    """(size, number of steps): whether a place along an axis, moved by a step, is still on it."""
    other = ops.arange(size, dtype="int32")[:, None] + ops.convert_to_tensor(steps.astype("int32"))
    return ops.logical_and(other >= 0, other < size)


def _positions(features, count):
    """(B, T, H, W, C) → (B, T, count, C), filled up with zeros."""
    batch, time, height, width, channels = sizes(features)
    positions = ops.reshape(features, (batch, time, height * width, channels))
    return ops.pad(positions, ((0, 0), (0, 0), (0, count - height * width), (0, 0)))


def _all_pairs(earlier, later, distance):
    """Twice (B, T, N, C) → (B * (T - d), N²): each position of frame t times each of the other's frame t + d."""
    batch, time, count, channels = sizes(earlier)
    frames = (batch, time - distance, count, channels)
    # ops.slice, because the gradient of Python slices is slow in TensorFlow.
    earlier = ops.slice(earlier, (0, 0, 0, 0), frames)
    later = ops.slice(later, (0, distance, 0, 0), frames)
    product = ops.matmul(earlier, ops.transpose(later, (0, 1, 3, 2)))  # (B, T - d, N, N)
    return ops.reshape(product, (batch * (time - distance), count * count))


def _window_places(height, width, window, count, earlier):
    """Where S[y,x,u,v] stand, in this order, in the flat product of two frames; outside the map: the last place.

    ``earlier``: whether (y, x) is a position of the earlier frame, a row of the product, and not of the later one.
    """
    # Known sizes give constants, which compilers know to be in range.
    array = np if isinstance(height, int) and isinstance(width, int) else ops
    position_stride, other_stride = (count, 1) if earlier else (1, count)
    last = count * count - 1

    def along(size, side, step):
        """(size, side): what one axis adds to the place."""
        position = array.expand_dims(array.arange(size, dtype="int32"), 1)
        other = position + array.arange(-(side // 2), side // 2 + 1, dtype="int32")
        inside = array.logical_and(other >= 0, other < size)
        return array.where(inside, (position * position_stride + other * other_stride) * step, last)

    rows = along(height, window[0], width)[:, None, :, None]  # (H, 1, U, 1)
    columns = along(width, window[1], 1)[None, :, None, :]  # (1, W, 1, V)
    return array.reshape(array.minimum(rows + columns, last), (-1,))
