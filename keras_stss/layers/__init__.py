"""One tensor step each; (B, T, H, W, C), channels last."""

from keras_stss.layers.clip_pooling import ClipMaxPooling
from keras_stss.layers.conv3d_bn import Conv3DBN
from keras_stss.layers.conv_bn import ConvBN
from keras_stss.layers.depthwise_conv import DepthwiseConvBN
from keras_stss.layers.displacement import Displacement
from keras_stss.layers.extract import ConvExtractor
from keras_stss.layers.extract_displacement import KernelSoftArgmaxExtractor, SoftArgmaxExtractor
from keras_stss.layers.extract_mlp import MLPExtractor
from keras_stss.layers.frames import FrameMaxPooling, NormalizeFrames
from keras_stss.layers.integrate import ConvIntegrator, FCIntegrator, MLPIntegrator
from keras_stss.layers.map_conv import MapConvBN
from keras_stss.layers.motion_features import MotionFeatures
from keras_stss.layers.neighbor_mean import NeighborMean
from keras_stss.layers.resize import ResizeFrames
from keras_stss.layers.sample_frames import MeanScores, SampleFrames
from keras_stss.layers.self_similarity import SpatioTemporalSelfSimilarity
from keras_stss.layers.separable_conv import SeparableConvBN
from keras_stss.layers.stm import ChannelwiseMotion, MotionDifference, TemporalConv
from keras_stss.layers.temporal_shift import TemporalShift

__all__ = [
    "ChannelwiseMotion",
    "ClipMaxPooling",
    "Conv3DBN",
    "ConvBN",
    "ConvExtractor",
    "ConvIntegrator",
    "DepthwiseConvBN",
    "Displacement",
    "FCIntegrator",
    "FrameMaxPooling",
    "KernelSoftArgmaxExtractor",
    "MLPExtractor",
    "MLPIntegrator",
    "MapConvBN",
    "MeanScores",
    "MotionDifference",
    "MotionFeatures",
    "NeighborMean",
    "NormalizeFrames",
    "ResizeFrames",
    "SampleFrames",
    "SeparableConvBN",
    "SoftArgmaxExtractor",
    "SpatioTemporalSelfSimilarity",
    "TemporalConv",
    "TemporalShift",
]
