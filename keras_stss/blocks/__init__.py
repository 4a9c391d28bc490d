"""Motion blocks: (B, T, H, W, C) in and out, at home anywhere in a model."""

from keras_stss.blocks.selfy import SELFYBlock

__all__ = ["SELFYBlock"]
