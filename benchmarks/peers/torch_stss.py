"""Self-similarity as PyTorch users write it, and by the PyPI package spatial-correlation-sampler (own code round it).

Every contestant is made by ``make(case, arrays, mode)``; see keras_stss/bench/worker.py. Inputs are given in the layout
that the formulation wants; no time is spent on changing it.
"""

import numpy as np
import torch
import torch.nn.functional as F

try:
    from spatial_correlation_sampler import spatial_correlation_sample
except ImportError as error:
    spatial_correlation_sample, NO_SAMPLER = None, str(error)

LAST, FIRST = "channels last", "channels first"


def normalize(features, axis):
    return features * torch.rsqrt(features.square().sum(axis, keepdim=True) + 1e-6)


def shift(features, offset):
    """Frame t of the result is frame t + offset; zero where there is none."""
    if offset == 0:
        return features
    padding = [0, 0] * (features.dim() - 2) + [max(-offset, 0), max(offset, 0)]
    return F.pad(features, padding)[:, max(offset, 0) :][:, : features.shape[1]]


def einsum_band(features, offsets, window):
    """All pairs of two frames by einsum; a strided view of the zero-padded product is the window."""
    batch, time, height, width, _ = features.shape
    rows, columns = window
    unit = normalize(features, -1)
    volumes = []
    for offset in offsets:
        product = torch.einsum("btyxc,btijc->btyxij", unit, shift(unit, offset))
        product = F.pad(product.flatten(0, 1), (columns // 2, columns // 2, rows // 2, rows // 2))
        frame, y, x, i, j = product.stride()
        volume = product.as_strided((batch * time, height, width, *window), (frame, y + i, x + j, i, j))
        volumes.append(volume.reshape(batch, time, height, width, *window))
    return torch.stack(volumes, 4)


def row_products(features, offsets, window):
    """Each row of positions times the rows that the window reaches, and the diagonals of that product."""
    batch, time, height, width, channels = features.shape
    rows, columns = window
    unit = normalize(features, -1)
    queries = unit.reshape(batch * time, height, 1, width, channels)
    volumes = []
    for offset in offsets:
        others = F.pad(shift(unit, offset), (0, 0, columns // 2, columns // 2, rows // 2, rows // 2)).flatten(0, 1)
        others = others.unfold(1, rows, 1).permute(0, 1, 4, 3, 2)  # (BT, H, U, C, W + V - 1)
        product = torch.matmul(queries, others)  # (BT, H, U, W, W + V - 1)
        frame, y, u, x, j = product.stride()
        volume = product.as_strided((batch * time, height, width, *window), (frame, y, x + j, u, j))
        volumes.append(volume.reshape(batch, time, height, width, *window))
    return torch.stack(volumes, 4)


def product_gather(features, offsets, window):
    """One batched product with the frames at all offsets, and one gather along its rows."""
    batch, time, height, width, channels = features.shape
    unit = normalize(features, -1).reshape(batch, time, height * width, channels)
    others = torch.cat([F.pad(shift(unit, offset), (0, 0, 0, 1)) for offset in offsets], 2)
    index = torch.from_numpy(_window_index(height, width, window, len(offsets))).expand(batch, time, -1, -1)
    volume = torch.gather(unit @ others.transpose(-1, -2), 3, index)
    return volume.reshape(batch, time, height, width, len(offsets), *window)


def _window_index(height, width, window, offsets):
    """(HW, LUV): where in L frames of HW + 1 positions, the last of them zero, each place of the window is."""
    y, x, u, v = np.ogrid[:height, :width, : window[0], : window[1]]
    y, x = y + u - window[0] // 2, x + v - window[1] // 2
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    index = np.where(inside, y * width + x, height * width).reshape(height * width, 1, -1)
    return (index + np.arange(offsets)[:, None] * (height * width + 1)).reshape(height * width, -1)


def sampler_each(features, offsets, window):
    """spatial-correlation-sampler: shifted frames in, once for each offset."""
    unit = normalize(features, 2)  # (B, T, C, H, W)
    volumes = [_sample(unit, shift(unit, offset), window) for offset in offsets]
    return torch.stack(volumes, 2)  # (B, T, L, U, V, H, W)


def sampler_once(features, offsets, window):
    """spatial-correlation-sampler: all offsets in one call, with the frames repeated for each."""
    unit = normalize(features, 2)
    others = torch.stack([shift(unit, offset) for offset in offsets], 2)  # (B, T, L, C, H, W)
    return _sample(unit.unsqueeze(2).expand_as(others), others, window)


def _sample(queries, others, window):
    if spatial_correlation_sample is None:
        raise ImportError(NO_SAMPLER)
    *lead, channels, height, width = queries.shape
    pair = (queries.reshape(-1, channels, height, width), others.reshape(-1, channels, height, width))
    return spatial_correlation_sample(*pair, 1, window).reshape(*lead, *window, height, width)


def stss(function, layout=LAST):
    def make(case, arrays, mode):
        offsets, window = case["offsets"], tuple(case["window"])
        features, gradient = torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["gradient"])
        if layout == FIRST:
            features = features.permute(0, 1, 4, 2, 3).contiguous()
            gradient = gradient.permute(0, 1, 4, 5, 6, 2, 3).contiguous()

        def forward():
            with torch.inference_mode():
                return (function(features, offsets, window),)

        def step():
            source = features.detach().requires_grad_()
            volume = function(source, offsets, window)
            return volume, *torch.autograd.grad(volume, source, gradient)

        def fetch(results):
            found = {name: result.detach() for name, result in zip(("volume", "gradient"), results)}
            if layout == FIRST:
                last = {"volume": (0, 1, 5, 6, 2, 3, 4), "gradient": (0, 1, 3, 4, 2)}
                found = {name: result.permute(last[name]) for name, result in found.items()}
            return {name: result.numpy() for name, result in found.items()}

        return (forward if mode == "forward" else step), fetch

    return make


CONTESTANTS = {
    ("stss", "sampler, an offset a call"): stss(sampler_each, FIRST),
    ("stss", "sampler, one call"): stss(sampler_once, FIRST),
    ("stss", "einsum and band"): stss(einsum_band),
    ("stss", "row products"): stss(row_products),
    ("stss", "product and gather"): stss(product_gather),
}
