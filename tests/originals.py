"""The papers' models in PyTorch, written afresh from what their checkpoints are called, and seeded weights for them.

``python tests/originals.py`` (with PyTorch) records the logits that tests/test_pretrained.py compares with.
"""

import itertools
import json
import struct
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parent / "golden"
LOGITS = GOLDEN / "pretrained_logits.npz"
MODELS = ("tsm_r18", "tsm_r50", "selfynet_tsm_r18", "selfynet_tsm_r50", "msnet_tsm_r18")
BN = ("weight", "bias", "running_mean", "running_var")


def checkpoint_names(model):
    """Names → shapes of a released checkpoint's state dict.

    Those of TSM are the others' without the motion block, with the shifted convolutions in a wrapper and a linear head.
    """
    if model.startswith("tsm"):
        names = checkpoint_names(model.replace("tsm", "selfynet_tsm"))
        names = {name: shape[:2] if "new_fc" in name else shape for name, shape in names.items() if "selfy" not in name}
        return {_wrapped(name): shape for name, shape in names.items()}
    names = {}
    section = None
    for line in (GOLDEN / "checkpoint_names.txt").read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif section == model:
            layer, kind, sizes = line.split()
            shape = tuple(map(int, sizes.split(",")))
            names |= {f"{layer}.{leaf}": shape for leaf in (BN if kind == "bn" else ("weight",))}
            if kind == "bn":
                names[f"{layer}.num_batches_tracked"] = ()
            if kind == "weight+bias":
                names[f"{layer}.bias"] = shape[:1]
    return names


def _wrapped(name):
    inside = ".layer" in name and ".conv1." in name
    return name.replace(".conv1.", ".conv1.net.") if inside else name


def seeded(names):
    """A state dict of seeded values, of sizes that keep the activations near one in evaluation mode."""
    state = {}
    for name, shape in names.items():
        random = np.random.RandomState(zlib.crc32(name.replace(".net.", ".").encode()))
        if name.endswith("num_batches_tracked"):
            state[name] = np.array(7, np.int64)
        elif len(shape) > 1:
            value = random.normal(size=shape) * (2.0 / np.prod(shape[1:])) ** 0.5
            state[name] = value.astype(np.float32)
        else:
            low, high = {"weight": (0.3, 0.9), "running_var": (0.6, 1.6)}.get(name.rsplit(".", 1)[-1], (-0.3, 0.3))
            state[name] = random.uniform(low, high, shape).astype(np.float32)
    return state


def write_safetensors(path, tensors):
    """Writes arrays as a safetensors file; returns its path."""
    kinds = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "bool": "BOOL"}
    header, parts, end = {"__metadata__": {"format": "pt"}}, [], 0
    for name, value in tensors.items():
        parts.append(value.tobytes())
        begin, end = end, end + len(parts[-1])
        header[name] = {"dtype": kinds[value.dtype.name], "shape": value.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))
    return path


def clips():
    """Two clips of five frames of 72×56 pixels: blocks of colour that move, with noise, as bytes (2, 5, 72, 56, 3)."""
    random = np.random.RandomState(5)
    still = random.randint(0, 200, (2, 1, 14, 10, 3)).repeat(8, 2).repeat(8, 3)
    frames = [np.roll(still, (3 * number, -2 * number), (2, 3))[:, :, :72, :56] for number in range(5)]
    frames = np.concatenate(frames, 1)
    return (frames + random.randint(0, 56, frames.shape)).astype(np.uint8)


def recorded(model):
    """The logits (2, 174) of the PyTorch model with its seeded weights on :func:`clips`."""
    with np.load(LOGITS) as logits:
        return logits[model]


# From here on PyTorch is needed, which only these functions import.


def build(model):
    """The PyTorch module whose state dict has the released checkpoint's names, in evaluation mode."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    depths, bottleneck = {"r18": ((2, 2, 2, 2), False), "r50": ((3, 4, 6, 3), True)}[model[-3:]]
    wide = 4 if bottleneck else 1

    def shift(x, frames):
        clips = x.unflatten(0, (-1, frames))
        part = clips.shape[2] // 8
        out = clips.clone()
        out[:, :, : 2 * part] = 0
        out[:, :-1, :part] = clips[:, 1:, :part]
        out[:, 1:, part : 2 * part] = clips[:, :-1, part : 2 * part]
        return out.flatten(0, 1)

    class Shifted(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x)

    def conv(inside, outside, kernel, stride=1, groups=1):
        return nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)

    class Block(nn.Module):
        def __init__(self, inside, width, stride):
            super().__init__()
            outside = wide * width
            forms = [(inside, width, 1, 1), (width, width, 3, stride), (width, outside, 1, 1)]
            forms = forms if bottleneck else [(inside, width, 3, stride), (width, width, 3, 1)]
            self.count = len(forms)
            for number, form in enumerate(forms, 1):
                layer = conv(*form)
                wrapped = number == 1 and model.startswith("tsm")
                setattr(self, f"conv{number}", Shifted(layer) if wrapped else layer)
                setattr(self, f"bn{number}", nn.BatchNorm2d(form[1]))
            self.downsample = None
            if stride > 1 or inside != outside:
                self.downsample = nn.Sequential(conv(inside, outside, 1, stride), nn.BatchNorm2d(outside))

        def forward(self, x, frames):
            y = shift(x, frames)
            for number in range(1, self.count + 1):
                y = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(y))
                y = F.relu(y) if number < self.count else y
            return F.relu(y + (x if self.downsample is None else self.downsample(x)))

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
            if model.startswith("msnet"):
                self.bn2 = nn.BatchNorm2d(128)
                self.flow_refinement, self.chnl_reduction = _flow_refinement(128 * wide), _reduction(128 * wide)
            inside = 64
            for stage, depth in enumerate(depths):
                width = 64 * 2**stage
                layers = nn.ModuleList()
                for position in range(depth):
                    layers.append(Block(inside, width, 2 if stage and not position else 1))
                    inside = wide * width
                setattr(self, f"layer{stage + 1}", layers)
                if stage == 1 and model.startswith("selfynet"):
                    self.selfy = _selfy(inside)

        def forward(self, x, frames):
            x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
            for stage in (1, 2, 3, 4):
                for block in getattr(self, f"layer{stage}"):
                    x = block(x, frames)
                if stage == 2 and model.startswith("selfynet"):
                    x = self.selfy(x, frames)
                if stage == 2 and model.startswith("msnet"):
                    x = x + self.flow_refinement(_motion(self.chnl_reduction(x), frames))
            return x.mean((2, 3))  # (frames, channels)

    class Recognizer(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_model = Backbone()
            linear = model.startswith("tsm")
            self.new_fc = nn.Linear(512 * wide, 174) if linear else nn.Conv1d(512 * wide, 174, 1)

        def forward(self, x, frames):
            x = self.base_model(x, frames)
            x = self.new_fc(x) if model.startswith("tsm") else self.new_fc(x[:, :, None])[:, :, 0]
            return x.unflatten(0, (-1, frames)).mean(1)

    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = Recognizer()

        def forward(self, x, frames):
            return self.module(x, frames)

    with torch.device("cpu"):
        return Parallel().eval()


def _reduction(inside):
    from torch import nn

    return nn.Sequential(nn.Conv2d(inside, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())


def _flow_refinement(outside):
    from torch import nn

    class FlowRefinement(nn.Module):
        def __init__(self):
            super().__init__()
            widths = (3, 16, 32, 64, outside)
            for number, (few, many) in enumerate(itertools.pairwise(widths), 1):
                kernel = 3 if number > 1 else 7
                layers = nn.Sequential(
                    nn.Conv2d(few, few, kernel, padding=kernel // 2, groups=few, bias=False),
                    nn.BatchNorm2d(few),
                    nn.ReLU(),
                    nn.Conv2d(few, many, 1, bias=False),
                    nn.BatchNorm2d(many),
                    nn.ReLU(),
                )
                setattr(self, f"conv{number}", layers)

        def forward(self, x):
            return self.conv4(self.conv3(self.conv2(self.conv1(x))))

    return FlowRefinement()


def _similarity(x, frames, offsets, window):
    """Cosine self-similarity of features (frames, C, H, W): (B, T, L, window², H, W), zero outside."""
    import torch
    from torch.nn import functional as F

    x = x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-6)
    _, channels, height, width = x.shape
    around = F.unfold(x, window, padding=window // 2).view(-1, frames, channels, window**2, height, width)
    x = x.unflatten(0, (-1, frames))
    volumes = []
    for offset in offsets:
        other = torch.zeros_like(around)
        if offset >= 0:
            other[:, : frames - offset] = around[:, offset:]
        else:
            other[:, -offset:] = around[:, :offset]
        volumes.append((x[:, :, :, None] * other).sum(2))
    return torch.stack(volumes, 2)


def _motion(features, frames, window=15):
    """Displacement (horizontal, vertical) and confidence between neighbouring frames: (frames, 3, H, W)."""
    import torch

    scores = _similarity(features, frames, (1,), window)[:, :-1, 0].relu()  # (B, T - 1, window², H, W)
    best, index = scores.max(2)
    y, x = (part.flatten().float() for part in torch.meshgrid(*2 * (torch.arange(window),), indexing="ij"))
    y, x = y[:, None, None], x[:, None, None]
    away = (y - (index // window)[:, :, None]) ** 2 + (x - (index % window)[:, :, None]) ** 2
    weights = (100 * scores * torch.exp(-away / (2 * 5**2))).softmax(2)
    radius = window // 2
    parts = [(weights * (axis - radius)).sum(2) / radius for axis in (x, y)]
    motion = torch.stack([*parts, best], 2)  # (B, T - 1, 3, H, W)
    return torch.cat([motion, motion[:, -1:]], 1).flatten(0, 1)


def _selfy(channels):
    from torch import nn

    def conv(inside, outside, stride=1, padding=1):
        kernel = nn.Conv3d(inside, outside, (1, 3, 3), (1, stride, stride), (0, padding, padding), bias=False)
        return nn.Sequential(kernel, nn.BatchNorm3d(outside), nn.ReLU())

    class Transformation(nn.Module):
        def __init__(self):
            super().__init__()
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 128, 3, 2, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()
            )

        def forward(self, x):
            return self.downsample(x)

    class Extraction(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv0, self.conv1, self.conv2 = conv(1, 4), conv(4, 16, 2), conv(16, 64, 2)
            self.conv3 = conv(64, 64, 1, 0)

        def forward(self, maps):
            return self.conv3(self.conv2(self.conv1(self.conv0(maps))))

    class Integration(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv0, self.conv1, self.conv2 = conv(64, 64), conv(64, 64), conv(64, 64)
            self.conv3_fuse = nn.Sequential(nn.Identity(), *conv(320, 64))
            self.upsample = nn.Sequential(
                nn.ConvTranspose3d(64, channels, 1, (1, 2, 2), output_padding=(0, 1, 1), bias=False),
                nn.BatchNorm3d(channels),
            )

        def forward(self, maps, offsets):  # (B·L, 64, T, H, W)
            maps = self.conv2(self.conv1(self.conv0(maps)))
            return self.upsample(self.conv3_fuse(maps.unflatten(0, (-1, offsets)).flatten(1, 2)))

    class SELFY(nn.Module):
        def __init__(self):
            super().__init__()
            self.stss_transformation, self.stss_extraction = Transformation(), Extraction()
            self.stss_integration = Integration()

        def forward(self, x, frames):
            volume = _similarity(self.stss_transformation(x), frames, range(-2, 3), 9)  # (B, T, 5, 81, H, W)
            batch, _, offsets, _, height, width = volume.shape
            maps = volume.permute(0, 1, 4, 5, 2, 3).reshape(-1, 1, offsets, 9, 9)
            maps = self.stss_extraction(maps).view(batch, frames, height, width, 64, offsets)
            maps = maps.permute(0, 5, 4, 1, 2, 3).flatten(0, 1)  # (B·L, 64, T, H, W)
            motion = self.stss_integration(maps, offsets).transpose(1, 2).flatten(0, 1)
            return (x + motion[:, :, : x.shape[2], : x.shape[3]]).relu()

    return SELFY()


def run(model, state, frames, reverse=False):
    """Logits of the PyTorch model with a state dict of arrays, on bytes (B, T, H, W, 3)."""
    import torch

    module = build(model)
    module.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()})
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = ((frames / 255.0 - mean) / std).astype(np.float32).transpose(0, 1, 4, 2, 3)
    with torch.no_grad():
        return module(torch.from_numpy(pixels).flatten(0, 1), frames.shape[1]).numpy()


if __name__ == "__main__":
    np.savez(LOGITS, **{name: run(name, seeded(checkpoint_names(name)), clips()) for name in MODELS})
