"""Self-similarity and its gradient in float64, term by term: what every contestant's numbers are held to."""

import numpy as np

EPSILON = 1e-6


def stss(features, offsets, window):
    """Cosine self-similarity: (B, T, H, W, C) → (B, T, H, W, L, U, V)."""
    unit, _ = _normalize(features)
    volume = np.zeros((*features.shape[:4], len(offsets), *window))
    for (layer, row, column), here, there in pairs(features.shape, offsets, window):
        volume[(*here, layer, row, column)] = np.einsum("btyxc,btyxc->btyx", unit[here], unit[there])
    return volume


def stss_gradient(features, gradient, offsets, window):
    """Gradient of sum(volume · gradient) with respect to the features."""
    unit, scale = _normalize(features)
    total = np.zeros_like(unit)
    for (layer, row, column), here, there in pairs(features.shape, offsets, window):
        weight = gradient[(*here, layer, row, column)].astype("float64")[..., None]
        total[here] += weight * unit[there]
        total[there] += weight * unit[here]
    return scale * (total - unit * np.sum(unit * total, axis=-1, keepdims=True))


def _normalize(features):
    wide = features.astype("float64")
    scale = 1 / np.sqrt(np.sum(wide**2, axis=-1, keepdims=True) + EPSILON)
    return wide * scale, scale


def pairs(shape, offsets, window):
    """Every displacement with the two equally large parts of the clip that it brings together."""
    for layer, offset in enumerate(offsets):
        for row in range(window[0]):
            for column in range(window[1]):
                moves = (offset, row - window[0] // 2, column - window[1] // 2)
                if all(abs(move) < size for move, size in zip(moves, shape[1:4])):
                    ends = [_overlap(move, size) for move, size in zip(moves, shape[1:4])]
                    yield (layer, row, column), *((slice(None), *end) for end in zip(*ends))


def _overlap(move, size):
    return slice(max(-move, 0), size - max(move, 0)), slice(max(move, 0), size + min(move, 0))
