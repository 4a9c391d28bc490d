"""Motion blocks: (B, T, H, W, C) in and out, to stand anywhere in a model."""

from keras_stss.blocks.correlation import CorrelationBlock
from keras_stss.blocks.correspondence import CorrespondenceBlock
from keras_stss.blocks.local_attention import LocalAttentionBlock
from keras_stss.blocks.motion_squeeze import MotionSqueezeBlock
from keras_stss.blocks.non_local import NonLocalBlock
from keras_stss.blocks.selfy import SELFYBlock
from keras_stss.blocks.stcb import STCBlock
from keras_stss.blocks.stm import STMBlock

__all__ = [
    "CorrelationBlock",
    "CorrespondenceBlock",
    "LocalAttentionBlock",
    "MotionSqueezeBlock",
    "NonLocalBlock",
    "SELFYBlock",
    "STCBlock",
    "STMBlock",
]
