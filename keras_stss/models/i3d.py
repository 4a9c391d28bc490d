"""I3D: Inception-v1 with batch normalisation, inflated along time."""

import keras

from keras_stss.layers import ClipMaxPooling, Conv3DBN
from keras_stss.models.channels import round_channels
from keras_stss.models.stages import Stages

#: Channels of each Inception module: 1×1; 1×1 and 3×3; 1×1 and 3×3; 1×1 after the pool (Szegedy et al., CVPR 2015,
#: Table 1).
MODULES = {
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_4d": (128, 128, 256, 24, 64, 64),
    "mixed_4e": (112, 144, 288, 32, 64, 64),
    "mixed_4f": (256, 160, 320, 32, 128, 128),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}
STAGES = ("conv1", "conv2", *MODULES)
#: Max pools before a stage: (kernel, strides), in time and space.
POOLS = {
    "conv2": ((1, 3, 3), (1, 2, 2)),
    "mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "mixed_5b": ((2, 2, 2), (2, 2, 2)),
}


def i3d(frames, stem_kernel=(7, 7, 7), width_multiplier=1.0, stem_padding="same", insert=None):
    """Applies I3D (Carreira and Zisserman, CVPR 2017, Figure 3) to frames with pixels in [-1, 1].

    Strided layers pad with the odd one behind, as the original does in TensorFlow. Time is divided by 8, or by 4 with
    a first kernel of one frame.

    Args:
        frames: Keras tensor (B, T, H, W, C).
        stem_kernel: (time, height, width) of the first convolution. MotionSqueeze (supplement, section 3) takes 1×7×7
            for clips of 8 frames; with one frame there is no stride along time there either, so that 8 frames stay 8.
        width_multiplier: all channels times this, rounded to multiples of 8.
        stem_padding: ``"same"`` for the original's first convolution; ``"symmetric"`` pads it as PyTorch does, for an
            inflated GoogLeNet of torchvision (see :class:`keras_stss.layers.conv3d_bn.Conv3DBN`). All other layers
            are alike in both for even sizes.
        insert: {stage: [layers]}, called one after another on the stage's output.

    Returns:
        Dictionary of stage name → Keras tensor (B, t, h, w, c), inserted layers included.

    Raises:
        ValueError: for an unknown stage or a stem that cannot be.
    """
    stem_kernel = tuple(stem_kernel)
    if len(stem_kernel) != 3 or any(side < 1 or side % 2 == 0 for side in stem_kernel):
        raise ValueError(f"stem_kernel must be three odd numbers. Received: stem_kernel={stem_kernel}")
    stages = Stages(STAGES, insert)

    def wide(channels):
        return round_channels(channels * width_multiplier)

    strides = (1 if stem_kernel[0] == 1 else 2, 2, 2)
    x = Conv3DBN(wide(64), stem_kernel, strides, stem_padding, name="conv1")(frames)  # (B, T/2, H/2, W/2, 64)
    x = _pool_before("conv2", stages.finish("conv1", x))
    x = Conv3DBN(wide(64), 1, name="conv2_reduce")(x)
    x = Conv3DBN(wide(192), 3, name="conv2")(x)  # (B, T/2, H/4, W/4, 192)
    x = stages.finish("conv2", x)
    for stage, channels in MODULES.items():
        if stage in POOLS:
            x = _pool_before(stage, x)
        x = stages.finish(stage, _inception(x, [wide(number) for number in channels], stage))
    return stages.outputs  # mixed_5c: (B, T/8, H/32, W/32, 1024)


def _pool_before(stage, x):
    return ClipMaxPooling(*POOLS[stage], name=f"pool_before_{stage}")(x)


def _inception(x, channels, name):
    """Four branches side by side."""
    point, reduce1, conv1, reduce2, conv2, pooled = channels
    first = Conv3DBN(point, 1, name=f"{name}_branch0")(x)
    second = Conv3DBN(reduce1, 1, name=f"{name}_branch1_reduce")(x)
    second = Conv3DBN(conv1, 3, name=f"{name}_branch1")(second)
    third = Conv3DBN(reduce2, 1, name=f"{name}_branch2_reduce")(x)
    third = Conv3DBN(conv2, 3, name=f"{name}_branch2")(third)
    fourth = ClipMaxPooling(3, 1, name=f"{name}_pool")(x)
    fourth = Conv3DBN(pooled, 1, name=f"{name}_branch3")(fourth)
    return keras.layers.Concatenate(name=name)([first, second, third, fourth])
