"""MobileNet-V2, GoogLeNet and I3D in PyTorch, written afresh from what their weights are called, and seeded weights.

``python tests/originals_backbones.py`` (with PyTorch) records the logits that tests/test_pretrained_backbones.py
compares with. Each network is a list of its convolutions; names and outputs are both made from it.
"""

import pickle
from collections import namedtuple

import numpy as np
from originals import BN, GOLDEN, clips, seeded

LOGITS = GOLDEN / "backbone_logits.npz"
CLASSES = 10
#: The form of TSM's checkpoints.
TSM = {"form": "flat", "shifted": True, "prefix": "module.base_model.", "head": "module.new_fc"}
Conv = namedtuple("Conv", "conv bn shape stride groups active", defaults=(1, 1, True))

#: Expansion, channels, blocks, stride of the first.
INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
#: What comes after a block's name: expansion, depthwise convolution and projection, of the first block and the others.
FORMS = {
    "torchvision": (
        (("conv.0.0", "conv.0.1"), ("conv.1", "conv.2")),
        (("conv.0.0", "conv.0.1"), ("conv.1.0", "conv.1.1"), ("conv.2", "conv.3")),
    ),
    "flat": (
        (("conv.0", "conv.1"), ("conv.3", "conv.4")),
        (("conv.0", "conv.1"), ("conv.3", "conv.4"), ("conv.6", "conv.7")),
    ),
    "timm": (
        (("conv_dw", "bn1"), ("conv_pw", "bn2")),
        (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    ),
}
#: Channels of GoogLeNet's modules, by I3D's name and GoogLeNet's; a pool stands before 3b, 4b and 5b.
MODULES = {
    ("Mixed_3b", "inception3a"): (64, 96, 128, 16, 32, 32),
    ("Mixed_3c", "inception3b"): (128, 128, 192, 32, 96, 64),
    ("Mixed_4b", "inception4a"): (192, 96, 208, 16, 48, 64),
    ("Mixed_4c", "inception4b"): (160, 112, 224, 24, 64, 64),
    ("Mixed_4d", "inception4c"): (128, 128, 256, 24, 64, 64),
    ("Mixed_4e", "inception4d"): (112, 144, 288, 32, 64, 64),
    ("Mixed_4f", "inception4e"): (256, 160, 320, 32, 128, 128),
    ("Mixed_5b", "inception5a"): (256, 160, 320, 32, 128, 128),
    ("Mixed_5c", "inception5b"): (384, 192, 384, 48, 128, 128),
}
STEM = (("Conv3d_1a_7x7", "conv1"), ("Conv3d_2b_1x1", "conv2"), ("Conv3d_2c_3x3", "conv3"))


def mobilenet(form, shifted=False):
    """(stem, blocks, last): blocks are lists of convolutions; with a shortcut where the shape stays."""
    first, others = FORMS[form]
    blocks, inside = [], 32
    for group, (expansion, channels, depth, stride) in enumerate(INVERTED):
        for position in range(depth):
            name = f"blocks.{group}.{position}." if form == "timm" else f"features.{len(blocks) + 1}."
            names = [tuple(name + layer for layer in pair) for pair in (others if blocks else first)]
            wide, step = inside * expansion, 1 if position else stride
            if shifted and position:
                # The wrapper holds the first layer of the branch.
                names[0] = (names[0][0].replace("conv.0", "conv.0.net"), names[0][1])
            convs = [
                Conv(*names[-2], (wide, 1, 3, 3), step, wide),
                Conv(*names[-1], (channels, wide, 1, 1), active=False),
            ]
            blocks.append(([Conv(*names[0], (wide, inside, 1, 1))] if expansion > 1 else []) + convs)
            inside = channels
    ends = ("conv_stem", "bn1", "conv_head", "bn2") if form == "timm" else _ends(len(blocks) + 1)
    return Conv(*ends[:2], (32, 3, 3, 3), 2), blocks, Conv(*ends[2:], (1280, inside, 1, 1))


def _ends(last):
    return "features.0.0", "features.0.1", f"features.{last}.0", f"features.{last}.1"


def mobilenet_names(form, shifted=False, prefix="", head="classifier", classes=CLASSES):
    """Names and shapes of a MobileNet-V2's state dict, in the order of its layers."""
    stem, blocks, last = mobilenet(form, shifted)
    names = _names([stem, *(conv for block in blocks for conv in block), last], prefix)
    return names | {f"{head}.weight": (classes, 1280), f"{head}.bias": (classes,)}


def inception(axes):
    """{module: convolutions} of GoogLeNet (2 axes) or I3D (3), the stem among the modules."""
    layers = {}
    for (three, two), (out, inside, kernel) in zip(STEM, ((64, 3, 7), (64, 64, 1), (192, 64, 3))):
        layers[three] = [_unit(three if axes == 3 else two, out, inside, kernel, axes, 2 if kernel == 7 else 1)]
    inside = 192
    for (three, two), channels in MODULES.items():
        name = three if axes == 3 else two
        parts = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
        parts = parts if axes == 3 else ("branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1")
        inputs = (inside, inside, channels[1], inside, channels[3], inside)
        kernels = (1, 1, 3, 1, 3, 1)
        layers[three] = [
            _unit(f"{name}.{part}", out, *rest, axes) for part, out, *rest in zip(parts, channels, inputs, kernels)
        ]
        inside = channels[0] + channels[2] + channels[4] + channels[5]
    return layers


def _unit(name, out, inside, kernel, axes, stride=1):
    return Conv(
        f"{name}.conv3d" if axes == 3 else f"{name}.conv", f"{name}.bn", (out, inside, *[kernel] * axes), stride
    )


def inception_names(axes, classes=CLASSES):
    """Names and shapes of GoogLeNet's state dict (2 axes), with an auxiliary head, or I3D's (3)."""
    names = _names([conv for layers in inception(axes).values() for conv in layers])
    if axes == 3:
        return names | {"logits.conv3d.weight": (classes, 1024, 1, 1, 1), "logits.conv3d.bias": (classes,)}
    names |= {"aux1.conv.conv.weight": (128, 512, 1, 1), "aux1.conv.bn.weight": (128,), "aux1.fc1.bias": (1024,)}
    return names | {"fc.weight": (classes, 1024), "fc.bias": (classes,)}


def _names(convs, prefix=""):
    names = {}
    for conv in convs:
        names[f"{prefix}{conv.conv}.weight"] = conv.shape
        names |= {f"{prefix}{conv.bn}.{leaf}": conv.shape[:1] for leaf in BN}
        names[f"{prefix}{conv.bn}.num_batches_tracked"] = ()
    return names


def lively(names):
    """Seeded values under which the outputs depend on the pictures more than on the biases."""

    def change(name, value):
        if name.endswith(".bias"):
            return value * 0.3
        return value + 0.5 if name.endswith(".weight") and value.ndim == 1 else value

    return {name: change(name, value).astype(value.dtype) for name, value in seeded(names).items()}


def renamed(names, state):
    """The values of a state dict under other names, layer by layer."""
    return dict(zip(names, state.values(), strict=True))


def without_gamma(state):
    """I3D's state dict as its normalisation has no factor: all ones."""
    return {name: np.ones_like(value) if name.endswith("bn.weight") else value for name, value in state.items()}


def write_flax(path, state):
    """Writes I3D's state dict as the Flax port does: a pickled dictionary of arrays in its layout and names."""
    flax = {"b0": "Branch_0/Conv3d_0a_1x1", "b3b": "Branch_3/Conv3d_0b_1x1"}
    flax |= {f"b{branch}a": f"Branch_{branch}/Conv3d_0a_1x1" for branch in (1, 2)}
    flax |= {f"b{branch}b": f"Branch_{branch}/Conv3d_0b_3x3" for branch in (1, 2)}
    content = {"params": {}, "batch_stats": {}}
    for name, value in state.items():
        *layers, kind, leaf = name.split(".")
        if leaf == "num_batches_tracked" or (kind, leaf) == ("bn", "weight"):
            continue
        layers = ["Logits/Conv3d_0c_1x1"] if layers == ["logits"] else [flax.get(layer, layer) for layer in layers]
        group = "batch_stats" if leaf.startswith("running") else "params"
        place = content[group]
        for layer in (*layers, "BatchNorm_0" if kind == "bn" else "Conv_0"):
            place = place.setdefault(layer, {})
        if group == "batch_stats":
            place[leaf.removeprefix("running_")] = value.reshape(1, 1, 1, 1, -1)
        else:
            place["kernel" if value.ndim == 5 else "bias"] = (
                value.transpose(2, 3, 4, 1, 0) if value.ndim == 5 else value
            )
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def recorded(model):
    """The logits of a PyTorch network with its seeded weights, as :func:`record` has them."""
    with np.load(LOGITS) as logits:
        return logits[model]


def still():
    """A picture of 32×32 pixels, as bytes."""
    return clips()[0, 0, :32, :32]


def long_clip():
    """One clip of 20 frames of 36×28 pixels, sizes that become odd."""
    return np.concatenate([*clips(), *clips()[:, ::-1]])[None, :, :36, :28]


# From here on PyTorch is needed, which only these functions import.


def run_mobilenet(state, frames, form="torchvision", shifted=False, prefix="", head="classifier"):
    """Logits on bytes (B, T, H, W, 3)."""
    import torch
    from torch.nn import functional as F

    state = _tensors(state)
    stem, blocks, last = mobilenet(form, shifted)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    count = frames.shape[1]
    x = _channels_first((frames / 255 - mean) / std).transpose(1, 2).flatten(0, 1)

    def apply(conv, x):
        x = F.conv2d(x, state[f"{prefix}{conv.conv}.weight"], None, conv.stride, conv.shape[-1] // 2, 1, conv.groups)
        x = _normalize(x, state, prefix + conv.bn, 1e-5)
        return F.relu6(x) if conv.active else x

    def shift(x):
        clip = x.unflatten(0, (-1, count))
        part = clip.shape[2] // 8
        out = clip.clone()
        out[:, :, : 2 * part] = 0
        out[:, :-1, :part] = clip[:, 1:, :part]
        out[:, 1:, part : 2 * part] = clip[:, :-1, part : 2 * part]
        return out.flatten(0, 1)

    with torch.no_grad():
        x = apply(stem, x)
        for block in blocks:
            shortcut = block[-2].stride == 1 and x.shape[1] == block[-1].shape[0] and len(block) == 3
            y = shift(x) if shifted and shortcut else x
            for conv in block:
                y = apply(conv, y)
            x = x + y if shortcut else y
        x = F.linear(apply(last, x).mean((2, 3)), state[f"{head}.weight"], state[f"{head}.bias"])
        return x.unflatten(0, (-1, count)).mean(1).numpy()


def run_inception(state, frames, axes):
    """Logits of I3D on clips (B, T, H, W, 3), or of GoogLeNet on pictures (B, H, W, 3), as bytes."""
    import torch
    from torch.nn import functional as F

    state = _tensors(state)
    convolve, pool = (F.conv3d, F.max_pool3d) if axes == 3 else (F.conv2d, F.max_pool2d)

    def same(x, kernel, stride):
        """TensorFlow's padding: as much as makes the size a multiple, the odd one behind."""
        pads = []
        for side, k, s in zip(x.shape[:1:-1], kernel[::-1], stride[::-1]):
            total = max((-(-side // s) - 1) * s + k - side, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads)

    def apply(conv, x):
        kernel, stride = conv.shape[2:], [conv.stride] * axes
        if axes == 3:
            x = convolve(same(x, kernel, stride), state[f"{conv.conv}.weight"], None, stride)
        else:
            x = convolve(x, state[f"{conv.conv}.weight"], None, stride, kernel[0] // 2)
        return F.relu(_normalize(x, state, conv.bn, 1e-3))

    def max_pool(x, kernel, stride):
        if axes == 3:
            return pool(same(x, kernel, stride), kernel, stride)
        return pool(x, kernel[1:], stride[1:], ceil_mode=True)

    pools = {"Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)), "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
             "Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}  # fmt: skip
    with torch.no_grad():
        x = _channels_first(frames / 127.5 - 1)
        for name, convs in inception(axes).items():
            x = max_pool(x, *pools[name]) if name in pools else x
            if len(convs) == 1:
                x = apply(convs[0], x)
                continue
            beside = pool(x, 3, 1, 1)
            branches = [apply(convs[0], x), apply(convs[2], apply(convs[1], x)), apply(convs[4], apply(convs[3], x))]
            x = torch.cat([*branches, apply(convs[5], beside)], 1)
        if axes == 2:
            return F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"]).numpy()
        x = (x[:, :, 1:] + x[:, :, :-1]).mean((3, 4), keepdim=True) / 2  # the average pool of two frames
        x = convolve(x, state["logits.conv3d.weight"], state["logits.conv3d.bias"])
        return x.mean((2, 3, 4)).numpy()


def _tensors(state):
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}


def _channels_first(pixels):
    import torch

    return torch.from_numpy(pixels.astype(np.float32)).movedim(-1, 1)


def _normalize(x, state, name, epsilon):
    from torch.nn import functional as F

    weight, bias, mean, var = (state[f"{name}.{leaf}"] for leaf in BN)
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, epsilon)


def record():
    """Logits by name: the networks that the tests compare with."""
    state = lively(mobilenet_names("torchvision"))
    i3d = lively(inception_names(3))
    return {
        "mobilenet_v2": run_mobilenet(state, clips()),
        "tsm_mobilenet_v2": run_mobilenet(renamed(mobilenet_names(**TSM), state), clips(), **TSM),
        "googlenet": run_inception(lively(inception_names(2)), still()[None], 2),
        "i3d": run_inception(i3d, long_clip(), 3),
        "i3d_without_gamma": run_inception(without_gamma(i3d), long_clip(), 3),
    }


if __name__ == "__main__":
    np.savez(LOGITS, **record())
