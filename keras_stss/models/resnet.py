"""ResNets over clips: TSN (frames apart) and TSM (temporal shift in every residual branch)."""

import keras

from keras_stss.layers import ConvBN, FrameMaxPooling, TemporalShift

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


def resnet(frames, name="resnet50", width=64, shift_divisor=None, insert=None, shift_every=1):
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

    Returns:
        Dictionary of stage name → Keras tensor (B, T, h, w, c), inserted layers included.

    Raises:
        ValueError: for an unknown name or stage.
    """
    if name not in RESNETS:
        raise ValueError(f"name must be one of {tuple(RESNETS)}. Received: name={name!r}")
    insert = dict(insert or {})
    if unknown := set(insert) - set(STAGES):
        raise ValueError(f"insert must name stages among {STAGES}. Received: {sorted(unknown)}")
    depths, bottleneck = RESNETS[name]
    outputs = {}

    def finish(stage, tensor):
        for layer in insert.get(stage, ()):
            tensor = layer(tensor)
        outputs[stage] = tensor
        return tensor

    x = ConvBN(width, 7, 2, name="conv1")(frames)  # (B, T, H/2, W/2, width)
    x = finish("pool1", FrameMaxPooling(name="pool1")(x))
    for number, depth in enumerate(depths):
        stage = STAGES[number + 1]
        for position in range(depth):
            strides = 2 if number > 0 and position == 0 else 1
            divisor = None if position % shift_every else shift_divisor
            x = _residual(x, width * 2**number, strides, bottleneck, divisor, f"{stage}_{position}")
        x = finish(stage, x)
    return outputs


def _residual(x, filters, strides, bottleneck, shift_divisor, name):
    """One residual block; the stride sits on the 3×3 convolution, as in torchvision."""
    branch = x if shift_divisor is None else TemporalShift(shift_divisor, name=f"{name}_shift")(x)
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
