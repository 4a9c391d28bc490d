"""Names and layouts: how weights are called elsewhere, and where they belong here. Tables, apart from architecture.

A further backbone or block is a further tuple of rules, and a further case in :func:`describe`.
"""

import re
from collections import Counter

from keras_stss.config import ConfigError
from keras_stss.models.resnet import RESNETS
from keras_stss.models.weights.i3d_names import describe_i3d
from keras_stss.models.weights.mobilenet_names import describe_mobilenet
from keras_stss.models.weights.rules import COUNTERS, KINDS, Origin, Rule, find_head

#: torchvision's and timm's ResNets, which TSM, MotionSqueeze and SELFY took over. TSM puts the shifted convolution into
#: a wrapper that calls it ``net``.
RESNET = (
    Rule(r"conv1", "conv1/conv", "conv", "out"),
    Rule(r"bn1", "conv1/bn", "bn", "out"),
    Rule(r"layer(\d)\.(\d+)\.conv1(?:\.net)?", "res{0:+1}_{1}_conv1/conv", "conv", "in"),
    Rule(r"layer(\d)\.(\d+)\.bn1", "res{0:+1}_{1}_conv1/bn", "bn"),
    Rule(r"layer(\d)\.(\d+)\.downsample\.0", "res{0:+1}_{1}_shortcut/conv", "conv", "in out"),
    Rule(r"layer(\d)\.(\d+)\.downsample\.1", "res{0:+1}_{1}_shortcut/bn", "bn", "out"),
    Rule(r"fc|fc1|new_fc", "logits", "linear", "in"),
)
BASIC = (
    Rule(r"layer(\d)\.(\d+)\.conv2", "res{0:+1}_{1}_conv2/conv", "conv", "out"),
    Rule(r"layer(\d)\.(\d+)\.bn2", "res{0:+1}_{1}_conv2/bn", "bn", "out"),
)
BOTTLENECK = (
    Rule(r"layer(\d)\.(\d+)\.conv2", "res{0:+1}_{1}_conv2/conv", "conv"),
    Rule(r"layer(\d)\.(\d+)\.bn2", "res{0:+1}_{1}_conv2/bn", "bn"),
    Rule(r"layer(\d)\.(\d+)\.conv3", "res{0:+1}_{1}_conv3/conv", "conv", "out"),
    Rule(r"layer(\d)\.(\d+)\.bn3", "res{0:+1}_{1}_conv3/bn", "bn", "out"),
)
#: The block of the released SELFY code, after its layer2.
SELFY = (
    Rule(r"selfy\.stss_transformation\.downsample\.0", "res3_selfy/reduce/conv", "conv", "in"),
    Rule(r"selfy\.stss_transformation\.downsample\.1", "res3_selfy/reduce/bn", "bn"),
    Rule(r"selfy\.stss_extraction\.conv(\d)\.0", "res3_selfy/extract/conv{0}", "conv"),
    Rule(r"selfy\.stss_extraction\.conv(\d)\.1", "res3_selfy/extract/conv{0}/bn", "bn"),
    Rule(r"selfy\.stss_integration\.conv(\d)(?:\.0|_fuse\.1)", "res3_selfy/integrate/conv{0}/conv", "conv"),
    Rule(r"selfy\.stss_integration\.conv(\d)(?:\.1|_fuse\.2)", "res3_selfy/integrate/conv{0}/bn", "bn"),
    Rule(r"selfy\.stss_integration\.upsample\.0", "res3_selfy/integrate/project", "transposed", "out"),
    Rule(r"selfy\.stss_integration\.upsample\.1", "res3_selfy/integrate/bn", "bn", "out"),
)
#: The block of the released MotionSqueeze code, spread over its ResNet; it acts after layer2.
MOTION_SQUEEZE = (
    Rule(r"chnl_reduction\.0", "res3_motion_squeeze/reduce/conv", "conv", "in"),
    Rule(r"chnl_reduction\.1", "res3_motion_squeeze/reduce/bn", "bn"),
    Rule(r"flow_refinement\.conv(\d)\.0", "res3_motion_squeeze/transform{0:-1}/depthwise", "depthwise"),
    Rule(r"flow_refinement\.conv(\d)\.1", "res3_motion_squeeze/transform{0:-1}/bn", "bn"),
    Rule(r"flow_refinement\.conv([123])\.3", "res3_motion_squeeze/transform{0:-1}/pointwise/conv", "conv"),
    Rule(r"flow_refinement\.conv([123])\.4", "res3_motion_squeeze/transform{0:-1}/pointwise/bn", "bn"),
    Rule(r"flow_refinement\.conv(4)\.3", "res3_motion_squeeze/transform{0:-1}/pointwise/conv", "conv", "out"),
    Rule(r"flow_refinement\.conv(4)\.4", "res3_motion_squeeze/transform{0:-1}/pointwise/bn", "bn", "out"),
)
#: KerasHub's ResNetBackbone and its classifier's head; 0 is the shortcut.
KERAS_HUB = (
    Rule(r"conv1_conv", "conv1/conv", "conv"),
    Rule(r"conv1_bn", "conv1/bn", "bn"),
    Rule(r"stack(\d)_block(\d+)_0_conv", "res{0:+2}_{1}_shortcut/conv", "conv"),
    Rule(r"stack(\d)_block(\d+)_0_bn", "res{0:+2}_{1}_shortcut/bn", "bn"),
    Rule(r"stack(\d)_block(\d+)_([123])_conv", "res{0:+2}_{1}_conv{2}/conv", "conv"),
    Rule(r"stack(\d)_block(\d+)_([123])_bn", "res{0:+2}_{1}_conv{2}/bn", "bn"),
    Rule(r"predictions", "logits", "linear"),
)

#: What stands before the names of a model that was wrapped, for several GPUs or by a recognition model.
PREFIX = re.compile(r"(?:(?:module|base_model|model|backbone)\.)+")
#: Tensors of a ResNet without a use, and why.
UNUSED = {**COUNTERS, r"bn2\.\w+": "the original never applies it"}
#: Settings of our blocks that do what the released code does.
RELEASED = {
    "selfy": {
        "temporal_offsets": (-2, -1, 0, 1, 2), "window": (9, 9), "similarity": "cosine", "strides": 2,
        "extraction": "conv", "integration": "conv", "output": "r+v", "variant": "released",
    },
    "motion_squeeze": {
        "window": (15, 15), "similarity": "cosine", "sigma": 5.0, "temperature": 0.01, "confidence": True,
        "backward": False, "transform": "separable", "fusion": "add",
    },
}  # fmt: skip
#: Where a file's weights cannot give the same outputs here, by a name that gives the file away.
REFUSED = {
    r"conv2_block1_preact_bn|post_bn|.*_pre_activation_bn": "a ResNetV2, which normalises before its convolutions; the "
    "networks here normalise after them",
    r"conv\d_block\d+_[123]_conv": "keras.applications' ResNet, which strides in the first 1×1 convolution of a block; "
    "torchvision's, as here, strides in the 3×3. No weights of the one give the outputs of the other (its biases and "
    "its epsilon alone could be folded into the statistics). Take torchvision's, timm's or KerasHub's weights",
    r"block_\d+_(?:expand|depthwise|project)|mobl\d+_conv_\d+_\w+": "keras.applications' MobileNet-V2, which "
    "pads strided convolutions on one side alone and takes other pixels; torchvision's, as here, pads on both sides "
    "alike. Take torchvision's or timm's weights",
    r"conv2_conv|conv1\.\d": "a ResNet-D or -vd, whose first convolution is made of three; the networks here "
    "have one of 7×7",
}
#: What is read.
KNOWN = (
    "ResNet-18, -34, -50, -101 of torchvision, timm, TSM, MotionSqueeze, SELFY or KerasHub; MobileNet-V2 of "
    "torchvision, timm or TSM; I3D in Flax or PyTorch; torchvision's GoogLeNet"
)


def strip(tensors):
    """The tensors by names without :data:`PREFIX`."""
    return {PREFIX.sub("", name) if PREFIX.match(name) else name: value for name, value in tensors.items()}


def describe(kind, tensors, path):
    """The :class:`Origin` of a file's stripped tensors; raises ConfigError for a model that is not known here."""
    modules = {name.rpartition(KINDS[kind].separator)[0] for name in tensors}
    for pattern, reason in REFUSED.items():
        if any(re.fullmatch(pattern, module) for module in modules):
            raise ConfigError(f"{path} holds {reason}")
    origin = _describe_resnet(kind, modules, tensors) or describe_i3d(kind, modules, tensors)
    if origin is None and kind == "torch":
        origin = describe_mobilenet(modules, tensors)
    if origin is None and any(module.startswith(("layers/", "backbone/layers/")) for module in modules):
        raise ConfigError(
            f"{path} names no layers, as files of older versions of Keras: load it with the code that made it and save "
            "it again with a newer Keras (model.save_weights)"
        )
    if origin is None:
        raise ConfigError(
            f"{path} holds no model that is known here ({KNOWN}). Its first names: {', '.join(list(tensors)[:4])}"
        )
    return origin


def _describe_resnet(kind, modules, tensors):
    """The :class:`Origin` of a ResNet's tensors, or None."""
    stage = r"layer(\d)\.(\d+)\.(\S+)" if kind == "torch" else r"stack(\d)_block(\d+)_(\S+)"
    parts = [match.groups() for module in modules if (match := re.fullmatch(stage, module))]
    counts = Counter(number for number, _ in {part[:2] for part in parts})
    depths = tuple(counts[number] for number in sorted(counts))
    bottleneck = any(layer in ("conv3", "3_conv") for *_, layer in parts)
    backbone = next((name for name, form in RESNETS.items() if form == (depths, bottleneck)), None)
    if backbone is None:
        return None
    if kind == "keras":
        classes = len(tensors["predictions/1"]) if "predictions/1" in tensors else None
        return Origin("KerasHub", backbone, kind, KERAS_HUB, classes)
    return _describe_torch_resnet(backbone, bottleneck, parts, modules, tensors)


def _describe_torch_resnet(backbone, bottleneck, parts, modules, tensors):
    """Tells the codes that share torchvision's names for a ResNet apart."""
    blocks = frozenset(f"res{int(number) + 1}_{position}" for number, position, _ in parts)
    wrapped = frozenset(f"res{int(number) + 1}_{position}" for number, position, layer in parts if layer == "conv1.net")
    head, classes = find_head(modules, tensors, ("new_fc", "fc", "fc1"))
    code, shifted, block = "torchvision or timm", None, None
    if any(module.startswith("selfy.") for module in modules):
        code, shifted, block = "SELFY", blocks, "selfy"
    elif any(module.startswith("flow_refinement.") for module in modules):
        code, shifted, block = "MotionSqueeze", blocks, "motion_squeeze"
    elif head and tensors[f"{head}.weight"].ndim == 3:
        # Their TSM without a motion block. It too shifts in every block, without a trace in the names.
        code, shifted = "SELFY or MotionSqueeze", blocks
    elif head == "new_fc":
        code, shifted = "TSM", wrapped
    settings = dict(RELEASED.get(block, {}))
    fused = tensors.get("selfy.stss_integration.conv3_fuse.1.weight")
    if fused is not None:
        count = fused.shape[1] // fused.shape[0]
        settings["temporal_offsets"] = tuple(range(-(count // 2), count - count // 2))
    rules = RESNET + (BOTTLENECK if bottleneck else BASIC) + SELFY + MOTION_SQUEEZE
    # TSM shifts in every second block of its ResNet-101.
    section = {"shift_every": 2} if shifted and len(shifted) < len(blocks) else {}
    return Origin(code, backbone, "torch", rules, classes, shifted, section, block, settings, UNUSED)
