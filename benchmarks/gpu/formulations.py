"""The same operations and blocks in plain PyTorch, as others formulate them. Tensors are (B, T, H, W, C)."""

import itertools

import torch
from torch import nn
from torch.nn import functional

EPSILON = 1e-6


def normalized(features, cosine=True):
    return features * torch.rsqrt(features.square().sum(-1, keepdim=True) + EPSILON) if cosine else features


def partner(features, offset):
    """Frame t + offset at t, zeros where there is none."""
    time = features.shape[1]
    if abs(offset) >= time:
        return torch.zeros_like(features)
    padded = functional.pad(features, (0, 0, 0, 0, 0, 0, max(-offset, 0), max(offset, 0)))
    return padded[:, max(offset, 0) : max(offset, 0) + time]


def _over_offsets(one):
    """A formulation for one pair of clips (B, T, H, W, C) → (B, T, H, W, U, V), for all offsets."""

    def stss(features, offsets, window, cosine=True):
        features = normalized(features, cosine)
        volumes = [one(features, partner(features, offset), window) for offset in offsets]
        return torch.stack(volumes, dim=4)  # (B, T, H, W, L, U, V)

    stss.__name__ = one.__name__
    return stss


@_over_offsets
def unfold(queries, keys, window):
    """Every key is repeated for each of its U·V queries, then multiplied."""
    batch, time, height, width, channels = queries.shape
    maps = keys.reshape(-1, height, width, channels).permute(0, 3, 1, 2)  # (BT, C, H, W)
    unfolded = functional.unfold(maps, tuple(window), padding=(window[0] // 2, window[1] // 2))  # (BT, C·UV, HW)
    unfolded = unfolded.reshape(-1, channels, window[0] * window[1], height * width)
    flat = queries.reshape(-1, height * width, channels).permute(0, 2, 1)[:, :, None]  # (BT, C, 1, HW)
    products = (flat * unfolded).sum(1)  # (BT, UV, HW)
    return products.permute(0, 2, 1).reshape(batch, time, height, width, *window)


@_over_offsets
def dense_band(queries, keys, window):
    """One product of all positions of two frames, out of which the window is gathered."""
    batch, time, height, width, channels = queries.shape
    flat = [tensor.reshape(batch * time, height * width, channels) for tensor in (queries, keys)]
    product = flat[0] @ flat[1].transpose(1, 2)  # (BT, HW, HW)
    index, inside = _band(height, width, tuple(window), queries.device)  # (HW, UV)
    band = product.gather(2, index.expand(batch * time, -1, -1))
    band = torch.where(inside, band, torch.zeros((), dtype=band.dtype, device=band.device))
    return band.reshape(batch, time, height, width, *window)


_bands = {}


def _band(height, width, window, device):
    """Index of the key of each query and displacement, and whether it is inside the map."""
    key = (height, width, window, device)
    if key not in _bands:
        places = [torch.arange(size, device=device) for size in (height, width, *window)]
        rows = places[0][:, None, None, None] + places[2][:, None] - window[0] // 2  # (H, 1, U, 1)
        columns = places[1][:, None, None] + places[3] - window[1] // 2  # (W, 1, V)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)  # (H, W, U, V)
        index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
        shape = (height * width, window[0] * window[1])
        _bands[key] = index.reshape(shape), inside.reshape(shape)
    return _bands[key]


@_over_offsets
def row_products(queries, keys, window):
    """For each vertical displacement, rows times rows; the diagonals of each product are the horizontal ones."""
    height, width = queries.shape[2:4]
    up, left = window[0] // 2, window[1] // 2
    padded = functional.pad(keys, (0, 0, left, left, up, up))  # (B, T, H + 2 up, W + 2 left, C)
    bands = []
    for u in range(window[0]):
        product = queries @ padded[:, :, u : u + height].transpose(-1, -2)  # (B, T, H, W, W + 2 left)
        flat = functional.pad(product.flatten(-2), (0, width))  # read one longer than the rows are: row x moves by x
        bands.append(flat.reshape(*product.shape[:-1], width + 2 * left + 1)[..., : window[1]])
    return torch.stack(bands, dim=-2)  # (B, T, H, W, U, V)


@_over_offsets
def shifted_products(queries, keys, window):
    """One elementwise product and sum for each displacement."""
    height, width = queries.shape[2:4]
    up, left = window[0] // 2, window[1] // 2
    padded = functional.pad(keys, (0, 0, left, left, up, up))
    places = [(u, v) for u in range(window[0]) for v in range(window[1])]
    products = [(queries * padded[:, :, u : u + height, v : v + width]).sum(-1) for u, v in places]
    return torch.stack(products, dim=-1).reshape(*queries.shape[:4], *window)


def correlation_sampler():
    """spatial-correlation-sampler as the SELFY code uses it, or None where it is not installed."""
    try:
        from spatial_correlation_sampler import spatial_correlation_sample
    except ImportError:
        return None

    @_over_offsets
    def spatial_correlation_sampler(queries, keys, window):
        batch, time, height, width, channels = queries.shape
        maps = [t.reshape(-1, height, width, channels).permute(0, 3, 1, 2).contiguous() for t in (queries, keys)]
        volume = spatial_correlation_sample(*maps, kernel_size=1, patch_size=tuple(window), stride=1, padding=0)
        return volume.permute(0, 3, 4, 1, 2).reshape(batch, time, height, width, *window)

    return spatial_correlation_sampler


STSS = {
    "unfold": unfold,
    "dense product and band": dense_band,
    "row products": row_products,
    "shifted products": shifted_products,
}


def displacement(features, offsets, window, cosine=True, sigma=5.0, temperature=0.01, stss=dense_band):
    """Kernel soft-argmax of the rectified self-similarity: horizontal, vertical displacement and confidence."""
    volume = stss(features, offsets, window, cosine)
    scores = functional.relu(volume.flatten(-2).float())  # (B, T, H, W, L, UV)
    confidence, best = scores.max(-1, keepdim=True)
    places = torch.arange(scores.shape[-1], device=features.device)
    rows, columns = places // window[1], places % window[1]
    squares = (rows - best // window[1]).square() + (columns - best % window[1]).square()
    weights = torch.softmax(scores * torch.exp(squares * (-0.5 / sigma**2)) / temperature, dim=-1)
    sides = [(columns, window[1] // 2), (rows, window[0] // 2)]
    means = [(weights * ((place - radius) / max(radius, 1))).sum(-1) for place, radius in sides]
    output = torch.stack([*means, confidence[..., 0]], dim=-1)  # (B, T, H, W, L, 3)
    has_partner = [[0 <= time + offset < features.shape[1] for offset in offsets] for time in range(features.shape[1])]
    mask = torch.tensor(has_partner, device=features.device)[None, :, None, None, :, None]
    return torch.where(mask, output, torch.zeros((), device=features.device)).to(features.dtype)


def _conv(inputs, outputs, kernel, stride=1, padding=None, groups=1):
    padding = kernel // 2 if padding is None else padding
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class SelfyBlock(nn.Module):
    """SELFY's block with a similarity of one's choice: (B·T, C, H, W) in and out."""

    def __init__(self, stss, time, channels=128, offsets=(-2, -1, 0, 1, 2), window=(9, 9), widths=(4, 16, 64, 64)):
        super().__init__()
        self.stss, self.time, self.offsets, self.window = stss, time, offsets, window
        self.reduce = _conv(channels, channels, 3, 2)
        paddings, strides, inputs = (1, 1, 1, 0), (1, 2, 2, 1), (1, *widths[:-1])
        layers = zip(inputs, widths, strides, paddings, strict=True)
        self.extract = nn.Sequential(*[_conv(i, o, 3, stride, padding) for i, o, stride, padding in layers])
        self.integrate = nn.Sequential(*[_conv(widths[-1] if not n else 64, 64, 3) for n in range(4)])
        self.fuse = _conv(64 * len(offsets), channels, 1)

    def forward(self, inputs):
        maps = self.reduce(inputs)  # (BT, C, H', W')
        frames, _, height, width = maps.shape
        features = maps.permute(0, 2, 3, 1).reshape(-1, self.time, height, width, maps.shape[1]).contiguous()
        volume = self.stss(features, self.offsets, self.window)  # (B, T, H', W', L, U, V)
        extracted = self.extract(volume.reshape(-1, 1, *self.window))  # (BTH'W'L, 64, 1, 1)
        count = len(self.offsets)
        extracted = extracted.reshape(frames, height, width, count, -1).permute(0, 3, 4, 1, 2)
        merged = self.integrate(extracted.reshape(frames * count, -1, height, width))
        fused = self.fuse(merged.reshape(frames, -1, height, width))
        motion = functional.interpolate(fused, scale_factor=2, mode="nearest")
        return inputs + motion[:, :, : inputs.shape[2], : inputs.shape[3]]


class MotionSqueezeBlock(nn.Module):
    """MotionSqueeze's block with a displacement operation of one's choice: (B·T, C, H, W) in and out."""

    def __init__(self, squeeze, time, channels=128, compared=64, window=(15, 15)):
        super().__init__()
        self.squeeze, self.time, self.window = squeeze, time, window
        self.reduce = _conv(channels, compared, 1)
        widths, layers = (3, 16, 32, 64, channels), []
        for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            kernel = 3 if number else 7
            layers += [_conv(inputs, inputs, kernel, groups=inputs), _conv(inputs, outputs, 1)]
        self.transform = nn.Sequential(*layers)

    def forward(self, inputs):
        maps = self.reduce(inputs)
        _, channels, height, width = maps.shape
        features = maps.permute(0, 2, 3, 1).reshape(-1, self.time, height, width, channels).contiguous()
        moved = self.squeeze(features, (1,), self.window)[:, :-1]  # (B, T - 1, H, W, 1, 3)
        motion = self.transform(moved.reshape(-1, height, width, 3).permute(0, 3, 1, 2).contiguous())
        motion = motion.reshape(-1, self.time - 1, *motion.shape[1:])
        motion = torch.cat([motion, motion[:, -1:]], dim=1)
        return inputs + motion.reshape(inputs.shape)
