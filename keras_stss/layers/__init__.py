"""One tensor step each; (B, T, H, W, C), channels last."""

from keras_stss.layers.conv_bn import ConvBN
from keras_stss.layers.displacement import Displacement
from keras_stss.layers.extract import ConvExtractor
from keras_stss.layers.frames import FrameMaxPooling, NormalizeFrames
from keras_stss.layers.integrate import ConvIntegrator
from keras_stss.layers.map_conv import MapConvBN
from keras_stss.layers.self_similarity import SpatioTemporalSelfSimilarity
from keras_stss.layers.separable_conv import SeparableConvBN
from keras_stss.layers.temporal_shift import TemporalShift

__all__ = [
    "ConvBN",
    "ConvExtractor",
    "ConvIntegrator",
    "Displacement",
    "FrameMaxPooling",
    "MapConvBN",
    "NormalizeFrames",
    "SeparableConvBN",
    "SpatioTemporalSelfSimilarity",
    "TemporalShift",
]
