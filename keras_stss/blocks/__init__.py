"""Motion blocks: (B, T, H, W, C) in and out, at home anywhere in a model."""

from keras_stss.blocks.motion_squeeze import MotionSqueezeBlock
from keras_stss.blocks.selfy import SELFYBlock

__all__ = ["MotionSqueezeBlock", "SELFYBlock"]
