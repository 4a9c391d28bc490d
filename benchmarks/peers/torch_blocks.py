"""The papers' blocks and models as one writes them in PyTorch, for the benchmark: own code, from the papers.

SELFY (Kwon et al., section 3.2), MotionSqueeze (Kwon et al., section 3.1), TSM-ResNet-18 (Lin et al., ICCV 2019; He et
al., CVPR 2016). Channels first with PyTorch's channels_last memory format, its fast one on CPUs; frames are folded into
the batch. The similarity is the fastest of PyTorch's formulations in torch_stss.py, or what the released code calls.
Every layer is created in the order of ours, so that weights are handed over one by one and outputs can be compared.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch_stss import product_gather, sampler_each

BN = {"eps": 1e-5, "momentum": 0.1}
FORMATS = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}


def conv_bn(channels, filters, kernel, stride=1, padding=None, groups=1, relu=True):
    """Convolution of any rank, batch normalisation, ReLU."""
    rank = len(kernel)
    padding = tuple(side // 2 for side in kernel) if padding is None else padding
    conv = (nn.Conv2d, nn.Conv3d)[rank - 2](channels, filters, kernel, stride, padding, groups=groups, bias=False)
    norm = (nn.BatchNorm2d, nn.BatchNorm3d)[rank - 2](filters, **BN)
    return nn.Sequential(conv, norm, *([nn.ReLU(inplace=True)] if relu else []))


def by_sampler(clip, offsets, window):
    """Self-similarity as the papers' released code computes it, from and to the layout of ``product_gather``."""
    volume = sampler_each(clip.permute(0, 1, 4, 2, 3).contiguous(), offsets, window)
    return volume.permute(0, 1, 5, 6, 2, 3, 4)


class Selfy(nn.Module):
    """(B·T, C, H, W) → the same; Z = ReLU(F* · Wθ) + V.

    ``extraction`` is "3d" for the paper's 1×3×3 convolutions over (l, u, v), or "2d" for the same with l in the batch.
    """

    def __init__(self, channels, frames, options, similarity, extraction):
        super().__init__()
        self.frames, self.similarity, self.extraction = frames, similarity, extraction
        self.offsets, self.window = options["temporal_offsets"], tuple(options["window"])
        width, layers = options["channels"], options["extraction_channels"]
        self.reduce = conv_bn(channels, width, (3, 3), stride=2)
        steps, inner = [], 1
        for number, filters in enumerate(layers):
            side = 3
            stride = 2 if number in (1, 2) else 1
            padding = 0 if number == len(layers) - 1 else 1
            form = ((side, side), stride, padding)
            if extraction == "3d":
                form = ((1, side, side), (1, stride, stride), (0, padding, padding))
            steps.append(conv_bn(inner, filters, *form))
            inner = filters
        self.extract = nn.Sequential(*steps)
        steps = []
        for filters in options["integration_channels"]:
            steps.append(conv_bn(inner, filters, (3, 3)))
            inner = filters
        self.integrate = nn.Sequential(*steps)
        self.fuse = conv_bn(len(self.offsets) * inner, channels, (1, 1))

    def forward(self, inputs):
        features = self.reduce(inputs)  # (BT, c, h, w)
        count, _, height, width = features.shape
        clip = features.permute(0, 2, 3, 1).unflatten(0, (-1, self.frames))  # (B, T, h, w, c)
        volume = self.similarity(clip, self.offsets, self.window)  # (B, T, h, w, L, U, V)
        layers = len(self.offsets)
        if self.extraction == "3d":
            maps = self.extract(volume.reshape(-1, 1, layers, *self.window))  # (BThw, C_F, L, 1, 1)
            maps = maps.reshape(count, height, width, -1, layers).permute(0, 4, 3, 1, 2)  # (BT, L, C_F, h, w)
        else:
            maps = self.extract(volume.reshape(-1, 1, *self.window))  # (BThwL, C_F, 1, 1)
            maps = maps.reshape(count, height, width, layers, -1).permute(0, 3, 4, 1, 2)
        maps = maps.reshape(count * layers, -1, height, width).contiguous(memory_format=torch.channels_last)
        maps = self.integrate(maps)  # (BTL, C*, h, w)
        motion = self.fuse(maps.reshape(count, -1, height, width))  # (BT, C, h, w)
        return F.interpolate(motion, size=inputs.shape[-2:], mode="nearest") + inputs


class MotionSqueeze(nn.Module):
    """(B·T, C, H, W) → the same; the last frame repeats the motion of the one before."""

    def __init__(self, channels, frames, options, similarity):
        super().__init__()
        self.frames, self.similarity, self.window = frames, similarity, tuple(options["window"])
        self.sigma, self.temperature = options["sigma"], options["temperature"]
        self.reduce = conv_bn(channels, options["channels"], (1, 1))
        steps, inner = [], 3
        for number, filters in enumerate((*options["transform_channels"], channels)):
            side = 3 if number else 7
            steps += [conv_bn(inner, inner, (side, side), groups=inner), conv_bn(inner, filters, (1, 1))]
            inner = filters
        self.transform = nn.Sequential(*steps)

    def forward(self, inputs):
        features = self.reduce(inputs).permute(0, 2, 3, 1).unflatten(0, (-1, self.frames))  # (B, T, H, W, c)
        # Each frame but the last with the next: a clip of pairs.
        volume = self.similarity(features, (1,), self.window)[:, :-1].squeeze(4)  # (B, T-1, H, W, U, V)
        moved = self._squeeze(volume).flatten(0, 1).permute(0, 3, 1, 2)  # (B(T-1), 3, H, W)
        motion = self.transform(moved.contiguous(memory_format=torch.channels_last))
        motion = motion.unflatten(0, (-1, self.frames - 1))
        motion = torch.cat([motion, motion[:, -1:]], 1).flatten(0, 1)  # (BT, C, H, W)
        return inputs + motion

    def _squeeze(self, volume):
        """Kernel soft-argmax: (…, U, V) → (…, 3), horizontal and vertical displacement and confidence."""
        rows, columns = self.window
        scores = F.relu(volume).flatten(-2)  # (…, UV)
        confidence, best = scores.max(-1, keepdim=True)
        down = torch.arange(rows) - torch.div(best, columns, rounding_mode="floor")  # (…, U)
        right = torch.arange(columns) - best % columns  # (…, V)
        squares = down.square().unsqueeze(-1) + right.square().unsqueeze(-2)
        kernel = torch.exp(squares * (-0.5 / self.sigma**2)).flatten(-2)
        weights = torch.softmax(kernel * scores / self.temperature, -1).unflatten(-1, (rows, columns))
        places = [((torch.arange(side) - side // 2) / max(side // 2, 1)).to(weights) for side in (rows, columns)]
        vertical, horizontal = weights.sum(-1) @ places[0], weights.sum(-2) @ places[1]
        return torch.cat([horizontal.unsqueeze(-1), vertical.unsqueeze(-1), confidence], -1)


class Residual(nn.Module):
    """Basic block of ResNet-18, with the temporal shift of TSM inside its branch."""

    def __init__(self, channels, filters, stride, frames):
        super().__init__()
        self.frames, self.moved = frames, channels // 8
        self.branch = nn.Sequential(
            conv_bn(channels, filters, (3, 3), stride), conv_bn(filters, filters, (3, 3), relu=False)
        )
        changes = stride > 1 or channels != filters
        self.shortcut = conv_bn(channels, filters, (1, 1), stride, relu=False) if changes else nn.Identity()

    def forward(self, inputs):
        clip = inputs.unflatten(0, (-1, self.frames))  # (B, T, C, H, W)
        shifted, moved = torch.zeros_like(clip), self.moved
        shifted[:, :-1, :moved] = clip[:, 1:, :moved]
        shifted[:, 1:, moved : 2 * moved] = clip[:, :-1, moved : 2 * moved]
        shifted[:, :, 2 * moved :] = clip[:, :, 2 * moved :]
        return F.relu(self.branch(shifted.flatten(0, 1)) + self.shortcut(inputs), inplace=True)


class TsmResNet18(nn.Module):
    """uint8 frames (B, T, 3, H, W) → logits; ``blocks`` makes what follows res3, if anything."""

    def __init__(self, frames, classes, block=None, width=64):
        super().__init__()
        self.frames = frames
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        layers = [conv_bn(3, width, (7, 7), 2), nn.MaxPool2d(3, 2, 1)]
        channels = width
        for stage in range(4):
            for position in range(2):
                filters = width * 2**stage
                layers.append(Residual(channels, filters, 2 if stage and not position else 1, frames))
                channels = filters
            if stage == 1 and block is not None:
                layers.append(block)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, frames):
        pixels = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last).float() / 255
        features = self.layers((pixels - self.mean) / self.deviation).mean((2, 3))  # (BT, c)
        return self.head(features.unflatten(0, (-1, self.frames)).mean(1))


# --- the same weights -------------------------------------------------------------------------------------------------


def load(module, arrays):
    """Copies our weights, which come in the order of the layers, and checks that none is left over."""
    weights = [(name, arrays[name]) for name in sorted(arrays) if name.startswith("weight/")]
    by_kind = {}
    for name, value in weights:
        by_kind.setdefault(_kind(name), []).append(value)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Conv3d):
                layer.weight.copy_(_convolution(by_kind["kernel"].pop(0), layer))
            elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
                names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean"}
                for ours, theirs in {**names, "moving_variance": "running_var"}.items():
                    getattr(layer, theirs).copy_(torch.from_numpy(by_kind[ours].pop(0)))
            elif isinstance(layer, nn.Linear):
                layer.weight.copy_(torch.from_numpy(by_kind["kernel"].pop(0).T))
                layer.bias.copy_(torch.from_numpy(by_kind["bias"].pop(0)))
    left = {kind: len(values) for kind, values in by_kind.items() if values}
    if left:
        raise ValueError(f"the two networks differ: weights are left over: {left}")


def _kind(name):
    return name.rsplit("/", 1)[-1].replace("depthwise_kernel", "kernel")


def _convolution(kernel, layer):
    """(kh, kw, C, F), or (kh, kw, C, 1) of a depthwise convolution, to PyTorch's order."""
    order = (2, 3, 0, 1) if layer.groups > 1 else (3, 2, 0, 1)
    return torch.from_numpy(kernel.transpose(order).copy()).view(layer.weight.shape)


# --- contestants ------------------------------------------------------------------------------------------------------


def _block(case, similarity, extraction):
    block = {"SELFYBlock": Selfy, "MotionSqueezeBlock": MotionSqueeze}[case["block"]]
    more = [extraction] if block is Selfy else []
    return block(case["channels"], case["frames"], case["options"], similarity, *more)


def network(similarity=product_gather, extraction="3d", channels_last=True):
    def make(case, arrays, mode):
        torch.manual_seed(0)
        inner = _block(case, similarity, extraction) if case["block"] else None
        if extraction == "2d" and case["block"] != "SELFYBlock":
            raise ValueError("there is no extraction in it")
        whole = TsmResNet18(case["frames"], case["classes"], inner) if "classes" in case else inner
        load(whole, arrays)
        for layer in whole.modules():
            if channels_last and isinstance(layer, nn.Conv2d | nn.Conv3d):
                layer.to(memory_format=FORMATS[type(layer)])
        inputs = torch.from_numpy(arrays["inputs"])  # (B, T, H, W, C)
        inputs = inputs.permute(0, 1, 4, 2, 3)  # (B, T, C, H, W), in memory as it was
        if "classes" not in case:
            inputs = inputs.flatten(0, 1)  # (BT, C, H, W)
        inputs = inputs if channels_last else inputs.contiguous()
        return _call(whole, inputs, arrays, mode), lambda results: _fetch(results, case)

    return make


def _call(whole, inputs, arrays, mode):
    if mode == "forward":
        whole.eval()

        def call():
            with torch.inference_mode():
                return (whole(inputs),)

        return call
    whole.train()
    gradient = torch.from_numpy(arrays["gradient"])
    if gradient.dim() == 5:
        gradient = gradient.flatten(0, 1).permute(0, 3, 1, 2)

    def step():
        source = inputs
        parameters = list(whole.parameters())
        if source.is_floating_point():
            source = source.detach().requires_grad_()
            parameters = [source, *parameters]
        outputs = whole(source)
        return outputs, *torch.autograd.grad(outputs, parameters, gradient)

    return step


def _fetch(results, case):
    def ours(tensor):
        tensor = tensor.detach()
        if "classes" in case:
            return tensor.numpy() if tensor.dim() == 2 else tensor.permute(2, 3, 1, 0).numpy()
        return tensor.permute(0, 2, 3, 1).unflatten(0, (-1, case["frames"])).numpy()

    return {name: np.ascontiguousarray(ours(result)) for name, result in zip(("outputs", "gradient"), results)}


CONTESTANTS = {
    (kind, name): make
    for kind in ("block", "model")
    for name, make in {
        "PyTorch": network(),
        "PyTorch, maps in the batch": network(extraction="2d"),
        "PyTorch, sampler": network(by_sampler),
        # Slower, and for the tests: its normalisation rounds less (see docs/benchmarks.md).
        "PyTorch, channels first": network(channels_last=False),
    }.items()
}
