"""ResNets over clips: TSN (frames apart), TSM (temporal shift in every residual branch) and STM (blocks of its own)."""

import keras

from keras_stss.blocks.stm import STMBlock, apply_layers
from keras_stss.layers import ConvBN, FrameMaxPooling, TemporalShift
from keras_stss.models.stages import Stages, check_stages

#: Residual blocks of res2…res5, and whether they are bottlenecks (He et al., CVPR 2016, table 1; resnet10 is the
#: common one-block-a-stage form for small experiments).
RESNETS = {
    "resnet10": ((1, 1, 1, 1), False),
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}
STAGES = ("pool1", "res2", "res3", "res4", "res5")


def resnet(frames, name="resnet50", width=64, shift_divisor=None, insert=None, shift_every=1, stm=None, causal=False):
    """Applies a ResNet to normalised frames.

    Args:
        frames: Keras tensor (B, T, H, W, C).
        name: a key of ``RESNETS``.
        width: channels of the first stage (64 in the papers).
        shift_divisor: None for TSN; n for TSM, which shifts 1/n of the channels each way before the first convolution
            of every residual branch (Lin et al., ICCV 2019).
        insert: {stage: [layers]}, called one after another on the stage's output.
        shift_every: 1 shifts in every residual block, 2 in the first, third, … of each stage, as TSM's code does in
            ResNet-101.
        stm: None, or a dictionary of options of :class:`keras_stss.blocks.STMBlock` (all but filters, strides and
            bottleneck), for STM blocks in the place of residual blocks, with ``stages``, where they stand (res2 to res5
            without it), and ``per_stage``, ``"all"`` blocks of these stages or the ``"first"`` one alone (Wang et al.,
            Table 9). An STM block has no shift.
        causal: no frame sees a later one: shifts and STM blocks have their causal forms.

    Returns:
        Dictionary of stage name → Keras tensor (B, T, h, w, c), inserted layers included.

    Raises:
        ValueError: for an unknown name or stage, and for options that do not exist.
    """
    if name not in RESNETS:
        raise ValueError(f"name must be one of {tuple(RESNETS)}. Received: name={name!r}")
    depths, bottleneck = RESNETS[name]
    stages = Stages(STAGES, insert)
    takes_stm = _places(stm)
    x = ConvBN(width, 7, 2, name="conv1")(frames)  # (B, T, H/2, W/2, width)
    x = stages.finish("pool1", FrameMaxPooling(name="pool1")(x))
    for number, depth in enumerate(depths):
        stage, filters = STAGES[number + 1], width * 2**number
        for position in range(depth):
            strides = 2 if number > 0 and position == 0 else 1
            block = f"{stage}_{position}"
            if takes_stm(stage, position):
                x = _stm(x, filters, strides, bottleneck, {**stm, "causal": causal}, block)
            else:
                divisor = None if position % shift_every else shift_divisor
                x = _residual(x, filters, strides, bottleneck, divisor, block, causal)
        x = stages.finish(stage, x)
    return stages.outputs


def _places(stm):
    """Function (stage, position) → whether an STM block stands there."""
    if stm is None:
        return lambda stage, position: False
    stages, per_stage = stm.get("stages", STAGES[1:]), stm.get("per_stage", "all")
    check_stages("stages of stm", stages, STAGES[1:])
    if per_stage not in ("all", "first"):
        raise ValueError(f"per_stage must be 'all' or 'first'. Received: per_stage={per_stage!r}")
    return lambda stage, position: stage in stages and (per_stage == "all" or position == 0)


def _stm(x, filters, strides, bottleneck, stm, name):
    """One STM block, of layers of the network's own: they have the names, and so the weights, of a residual block's."""
    options = {key: value for key, value in stm.items() if key not in ("stages", "per_stage")}
    block = STMBlock(filters, strides, bottleneck=bottleneck, **options, name=name)
    return apply_layers(block.make_layers(x.shape[-1], f"{name}_"), x)


def _residual(x, filters, strides, bottleneck, shift_divisor, name, causal):
    """One residual block; the stride sits on the 3×3 convolution, as in torchvision."""
    branch = x if shift_divisor is None else TemporalShift(shift_divisor, causal, name=f"{name}_shift")(x)
    if bottleneck:
        out = 4 * filters
        branch = ConvBN(filters, 1, name=f"{name}_conv1")(branch)
        branch = ConvBN(filters, 3, strides, name=f"{name}_conv2")(branch)
        branch = ConvBN(out, 1, activation=None, name=f"{name}_conv3")(branch)
    else:
        out = filters
        branch = ConvBN(filters, 3, strides, name=f"{name}_conv1")(branch)
        branch = ConvBN(out, 3, activation=None, name=f"{name}_conv2")(branch)
    shortcut = x
    if strides > 1 or x.shape[-1] != out:
        shortcut = ConvBN(out, 1, strides, activation=None, name=f"{name}_shortcut")(x)
    x = keras.layers.Add(name=f"{name}_add")([shortcut, branch])
    return keras.layers.ReLU(name=f"{name}_relu")(x)
