"""Names of MobileNet-V2's layers in torchvision, timm, TSM and the older code that TSM took over."""

import re

from keras_stss.models.mobilenet_v2 import INVERTED_RESIDUALS
from keras_stss.models.weights.rules import Origin, Rule, find_head

#: Blocks here, in order, by the groups of equal blocks that timm counts.
GROUPS = tuple(
    tuple(f"{stage}_{sum(depth for _, _, depth, _ in groups[:number]) + position}" for position in range(group[2]))
    for stage, groups in INVERTED_RESIDUALS.items()
    for number, group in enumerate(groups)
)
BLOCKS = tuple(block for group in GROUPS for block in group)
#: Patterns of a block's expansion, depthwise convolution and projection: (convolution, batch normalisation). A shift
#: wraps the expansion, or what holds it, as ``net``.
NESTED = (
    (r"conv\.0(?:\.net)?\.0", r"conv\.0(?:\.net)?\.1"),
    (r"conv\.1\.0", r"conv\.1\.1"),
    (r"conv\.2", r"conv\.3"),
)
NESTED_FIRST = (None, (r"conv\.0\.0", r"conv\.0\.1"), (r"conv\.1", r"conv\.2"))
FLAT = ((r"conv\.0(?:\.net)?", r"conv\.1"), (r"conv\.3", r"conv\.4"), (r"conv\.6", r"conv\.7"))
FLAT_FIRST = (None, (r"conv\.0", r"conv\.1"), (r"conv\.3", r"conv\.4"))
TIMM = (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))
TIMM_FIRST = (None, ("conv_dw", "bn1"), ("conv_pw", "bn2"))
HEADS = ("new_fc", "classifier", "classifier.1", "fc")


def _rules(blocks, first, others, stem, last):
    """Rules from the names of the blocks, the forms of the first one and the others, and (conv, bn) of the ends."""
    rules = [
        Rule(stem[0], "stage1_conv/conv", "conv"),
        Rule(stem[1], "stage1_conv/bn", "bn"),
        Rule(last[0], "stage5_conv/conv", "conv", "in"),
        Rule(last[1], "stage5_conv/bn", "bn"),
        Rule(r"new_fc|fc|classifier(?:\.1)?", "logits", "linear"),
    ]
    for there, here in zip(blocks, BLOCKS):
        expand, depthwise, project = first if here == BLOCKS[0] else others
        if expand:
            rules.append(Rule(rf"{there}\.{expand[0]}", f"{here}_expand/conv", "conv", "in"))
            rules.append(Rule(rf"{there}\.{expand[1]}", f"{here}_expand/bn", "bn"))
        rules.append(Rule(rf"{there}\.{depthwise[0]}", f"{here}_depthwise/depthwise", "depthwise"))
        rules.append(Rule(rf"{there}\.{depthwise[1]}", f"{here}_depthwise/bn", "bn"))
        rules.append(Rule(rf"{there}\.{project[0]}", f"{here}_project/conv", "conv", "out"))
        rules.append(Rule(rf"{there}\.{project[1]}", f"{here}_project/bn", "bn", "out"))
    return tuple(rules)


def describe_mobilenet(modules, tensors):
    """The :class:`Origin` of a MobileNet-V2's stripped PyTorch tensors, or None."""
    head, classes = find_head(modules, tensors, HEADS)
    counts = [
        sum(bool(re.fullmatch(rf"blocks\.{group}\.\d+\.conv_dw", name)) for name in modules) for group in range(8)
    ]
    if counts == [*map(len, GROUPS), 0]:
        names = [
            rf"blocks\.{number}\.{position}" for number, group in enumerate(GROUPS) for position in range(len(group))
        ]
        rules = _rules(names, TIMM_FIRST, TIMM, ("conv_stem", "bn1"), ("conv_head", "bn2"))
        return Origin("timm", "mobilenet_v2", rules=rules, classes=classes)
    last = len(BLOCKS) + 1
    numbers = {int(match[1]) for name in modules if (match := re.match(r"features\.(\d+)\.conv\.", name))}
    if numbers != set(range(1, last)) or f"features.{last}.0" not in modules:
        return None
    nested = "features.1.conv.0.0" in modules
    rules = _rules(
        [rf"features\.{number}" for number in range(1, last)],
        NESTED_FIRST if nested else FLAT_FIRST,
        NESTED if nested else FLAT,
        (r"features\.0\.0", r"features\.0\.1"),
        (rf"features\.{last}\.0", rf"features\.{last}\.1"),
    )
    wrapped = {int(match[1]) for name in modules if (match := re.match(r"features\.(\d+)\.conv\.0\.net\b", name))}
    shifted = frozenset(BLOCKS[number - 1] for number in wrapped) if wrapped or head == "new_fc" else None
    code = "TSM" if shifted is not None else "torchvision" if nested else "TSM's ImageNet weights"
    return Origin(code, "mobilenet_v2", rules=rules, classes=classes, shifted=shifted)
