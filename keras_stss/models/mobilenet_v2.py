"""MobileNet-V2 over clips: TSN (frames apart) and TSM (temporal shift in the residual branches)."""

import keras

from keras_stss.layers.conv_bn import ConvBN
from keras_stss.layers.depthwise_conv import DepthwiseConvBN
from keras_stss.layers.temporal_shift import TemporalShift
from keras_stss.models.channels import round_channels
from keras_stss.models.stages import Stages

#: Inverted residuals of each stage: (expansion, channels, blocks, stride of the first) (Sandler et al., CVPR 2018,
#: Table 2; the stages are those of Table 10 in MotionSqueeze's supplement).
INVERTED_RESIDUALS = {
    "stage2": ((1, 16, 1, 1), (6, 24, 2, 2)),
    "stage3": ((6, 32, 3, 2),),
    "stage4": ((6, 64, 4, 2), (6, 96, 3, 1)),
    "stage5": ((6, 160, 3, 2), (6, 320, 1, 1)),
}
STAGES = ("stage1", *INVERTED_RESIDUALS)
STEM_CHANNELS, LAST_CHANNELS = 32, 1280


def mobilenet_v2(frames, width_multiplier=1.0, shift_divisor=None, insert=None, causal=False):
    """Applies MobileNet-V2 to normalised frames.

    The first convolution is 3×3, as in MobileNet-V2's paper and all ImageNet weights; MotionSqueeze's Table 10 has 7×7
    there, with which it could not start from the ImageNet weights that it starts from.

    Args:
        frames: Keras tensor (B, T, H, W, C).
        width_multiplier: all channels times this, rounded to multiples of 8 (the last convolution never has fewer than
            1280).
        shift_divisor: None for TSN; n for TSM, which shifts 1/n of the channels each way before the expansion of
            every block that has a shortcut (Lin et al., ICCV 2019, and its code).
        insert: {stage: [layers]}, called one after another on the stage's output.
        causal: the shift has its causal form: no frame sees a later one.

    Returns:
        Dictionary of stage name → Keras tensor (B, T, h, w, c), inserted layers included.

    Raises:
        ValueError: for an unknown stage or a multiplier that is not positive.
    """
    if width_multiplier <= 0:
        raise ValueError(f"width_multiplier must be positive. Received: width_multiplier={width_multiplier}")
    stages = Stages(STAGES, insert)
    stem = round_channels(STEM_CHANNELS * width_multiplier)
    x = ConvBN(stem, 3, 2, activation="relu6", name="stage1_conv")(frames)  # (B, T, H/2, W/2, 32)
    x = stages.finish("stage1", x)
    for stage, groups in INVERTED_RESIDUALS.items():
        position = 0
        for expansion, channels, depth, first_stride in groups:
            filters = round_channels(channels * width_multiplier)
            for number in range(depth):
                strides = 1 if number else first_stride
                x = _inverted_residual(x, filters, expansion, strides, shift_divisor, f"{stage}_{position}", causal)
                position += 1
        if stage == STAGES[-1]:
            last = round_channels(LAST_CHANNELS * max(1.0, width_multiplier))
            x = ConvBN(last, 1, activation="relu6", name=f"{stage}_conv")(x)  # (B, T, H/32, W/32, 1280)
        x = stages.finish(stage, x)
    return stages.outputs


def _inverted_residual(x, filters, expansion, strides, shift_divisor, name, causal):
    """1×1 expansion, depthwise 3×3 and a linear 1×1 projection, with a shortcut where the shape stays."""
    shortcut = x if strides == 1 and x.shape[-1] == filters else None
    inside = x.shape[-1] * expansion
    if shortcut is not None and expansion > 1 and shift_divisor is not None:
        x = TemporalShift(shift_divisor, causal, name=f"{name}_shift")(x)
    if expansion > 1:
        x = ConvBN(inside, 1, activation="relu6", name=f"{name}_expand")(x)
    x = DepthwiseConvBN(3, strides, name=f"{name}_depthwise")(x)
    x = ConvBN(filters, 1, activation=None, name=f"{name}_project")(x)
    return x if shortcut is None else keras.layers.Add(name=f"{name}_add")([shortcut, x])
