"""The STM block: a residual block that sees the order and the motion of frames."""

import keras

from keras_stss.layers import ChannelwiseMotion, ConvBN, DepthwiseConvBN, TemporalConv
from keras_stss.layers.stm import check_choice, check_count
from keras_stss.ops.sizes import check_shape


@keras.saving.register_keras_serializable(package="keras_stss")
class STMBlock(keras.layers.Layer):
    """A residual block with the two modules of STM (Wang et al., section 3.4 and Fig. 3).

    A 1×1 convolution reduces the channels. On its output act, side by side, the channel-wise spatio-temporal module
    CSTM, a convolution over time (eq. 1) and a 3×3 convolution, and the channel-wise motion module CMM (eq. 2). Their
    sum goes through a 1×1 convolution that restores the channels, and is added to the input. Normalisation and ReLU
    stand where the residual block has them: with CMM silent and the kernels over time as they start, it is that block.

    The paper shows no block for ResNet-18 and -34. Here (``bottleneck=False``) the modules take the place of the second
    3×3 convolution: in the bottleneck, too, they follow the first convolution.

    Args:
        filters: channels between the 1×1 convolutions; None for those that keep the input's shape: C // 4 with
            bottleneck, C without.
        strides: stride of the 3×3 convolution and of CMM. The convolution over time comes before it, at the input's
            resolution.
        reduction: r, by which CMM divides the channels.
        modules: ``"both"``, ``"cstm"`` alone, or ``"cmm"``, beside the residual block's own 3×3 convolution (Table 6).
        fusion: ``"sum"``, or ``"concat"`` and a 1×1 convolution from 2·filters to filters channels (Table 7).
        kernels: ``"learned"``, or ``"frequency"``, the fixed F(t) + F(t+1) and F(t) - F(t+1) (Table 8).
        temporal: form of CSTM's convolution over time, ``"channelwise"``, or ``"ordinary"``, which mixes the channels
            (Table 10).
        spatial: form of CSTM's 3×3 convolution, likewise.
        motion: form of CMM's 3×3 convolution, likewise.
        bottleneck: False for the block of two 3×3 convolutions.
        causal: both modules see each frame and the one before, none a later one (see
            :class:`keras_stss.layers.TemporalConv` and :class:`keras_stss.layers.MotionDifference`).

    Input shape: (B, T, H, W, C); C must be known. Output shape: (B, T, ceil(H / strides), ceil(W / strides), C'), where
    C' is C without ``filters``, else 4·filters with bottleneck and filters without. Where the shapes differ, the
    shortcut is a 1×1 convolution.
    """

    def __init__(
        self,
        filters=None,
        strides=1,
        reduction=16,
        modules="both",
        fusion="sum",
        kernels="learned",
        temporal="channelwise",
        spatial="ordinary",
        motion="channelwise",
        bottleneck=True,
        causal=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if filters is not None:
            check_count("filters", filters)
        check_count("strides", strides)
        check_count("reduction", reduction)
        check_choice("modules", modules, ("both", "cstm", "cmm"))
        check_choice("fusion", fusion, ("sum", "concat"))
        check_choice("kernels", kernels, ("learned", "frequency"))
        for name, form in (("temporal", temporal), ("spatial", spatial), ("motion", motion)):
            check_choice(name, form, ("channelwise", "ordinary"))
        if kernels == "frequency" and "ordinary" in (temporal, motion):
            raise ValueError(
                "kernels='frequency' fixes kernels that mix no channels: temporal and motion must be 'channelwise'. "
                f"Received: temporal={temporal!r}, motion={motion!r}"
            )
        self.filters = filters
        self.strides = strides
        self.reduction = reduction
        self.modules = modules
        self.fusion = fusion
        self.kernels = kernels
        self.temporal = temporal
        self.spatial = spatial
        self.motion = motion
        self.bottleneck = bottleneck
        self.causal = causal

    def make_layers(self, channels, prefix=""):
        """The layers of the block, for :func:`apply_layers`; a ResNet takes them as its own.

        Args:
            channels: of the input.
            prefix: begins the layers' names.

        Returns:
            {role: layer}. What a residual block has, too, is named as there: ImageNet weights find it.
        """
        filters, outputs = self._sizes(channels)
        layers = {}

        def add(role, kind, *arguments, **options):
            layers[role] = kind(*arguments, **options, dtype=self.dtype_policy, name=f"{prefix}{role}")

        if self.bottleneck:
            add("conv1", ConvBN, filters, 1)
            self._add_modules(add, filters, self.strides, "relu")
            add("conv3", ConvBN, outputs, 1, activation=None)
        else:
            add("conv1", ConvBN, filters, 3, self.strides)
            self._add_modules(add, filters, 1, None)
        if self.strides > 1 or channels != outputs:
            add("shortcut", ConvBN, outputs, 1, self.strides, activation=None)
        add("add", keras.layers.Add)
        add("relu", keras.layers.ReLU)
        return layers

    def _sizes(self, channels):
        """Channels inside and channels of the output."""
        if self.filters is None:
            return (max(channels // 4, 1) if self.bottleneck else channels), channels
        return self.filters, self.filters * (4 if self.bottleneck else 1)

    def _add_modules(self, add, filters, strides, activation):
        if self.modules != "cmm":
            add("temporal", TemporalConv, self.temporal if self.kernels == "learned" else "frequency", self.causal)
        # With CMM the activation comes after the two are joined.
        alone = activation if self.modules == "cstm" else None
        if self.spatial == "ordinary":
            add("conv2", ConvBN, filters, 3, strides, activation=alone)
        else:
            add("conv2", DepthwiseConvBN, 3, strides, activation=alone)
        if self.modules == "cstm":
            return
        add("cmm", ChannelwiseMotion, self.reduction, self.motion, self.kernels, strides, self.causal)
        if self.fusion == "concat":
            add("concat", keras.layers.Concatenate)
            add("fuse", ConvBN, filters, 1, activation=activation)
        else:
            add("sum", keras.layers.Add)
            add("activate", keras.layers.Activation, activation)

    def build(self, input_shape):
        check_shape(input_shape, "B T H W C", known=("C",))
        self.parts = self.make_layers(input_shape[-1])
        inner = self.parts["conv1"].compute_output_shape(input_shape)
        outer = self.parts["conv2"].compute_output_shape(inner)
        shapes = {"conv1": input_shape, "shortcut": input_shape, "temporal": inner, "conv2": inner, "cmm": inner}
        shapes |= {"fuse": (*outer[:-1], 2 * outer[-1]), "conv3": outer}
        for role, shape in shapes.items():
            if role in self.parts:
                self.parts[role].build(shape)

    def call(self, inputs, training=None):
        return apply_layers(self.parts, inputs, training)

    def state_shapes(self, input_shape):
        """{name: shape} of the state of :meth:`step` for frames of a shape."""
        inner = self.parts["conv1"].compute_output_shape(input_shape)
        shapes = {role: self.parts[role].state_shapes(inner) for role in self._timed()}
        return {f"{role}_{name}": shape for role, each in shapes.items() for name, shape in each.items()}

    def _timed(self):
        """Roles of the layers that see more than one frame."""
        return [role for role in ("temporal", "cmm") if role in self.parts]

    def step(self, frame, state, count):
        """The next frame (B, 1, H, W, C) of a stream: (output, new state). See :mod:`keras_stss.streaming`."""
        left = {}

        def stepping(role):
            own = {name.removeprefix(f"{role}_"): value for name, value in state.items() if name.startswith(f"{role}_")}

            def step(features, training=None):
                outputs, after = self.parts[role].step(features, own, count)
                left.update({f"{role}_{name}": value for name, value in after.items()})
                return outputs

            return step

        parts = {**self.parts, **{role: stepping(role) for role in self._timed()}}
        return apply_layers(parts, frame, training=False), left

    def motion_features(self, inputs):
        """{"motion": H of eq. 2, (B, T, H', W', C')} of arrays or Keras tensors; {} where there is no CMM."""
        if self.modules == "cstm":
            return {}
        return self.parts["cmm"].motion_features(self.parts["conv1"](inputs, training=False))

    def compute_output_shape(self, input_shape):
        space = (size and -(-size // self.strides) for size in input_shape[2:4])
        return (*input_shape[:2], *space, self._sizes(input_shape[-1])[1])

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "strides": self.strides,
            "reduction": self.reduction,
            "modules": self.modules,
            "fusion": self.fusion,
            "kernels": self.kernels,
            "temporal": self.temporal,
            "spatial": self.spatial,
            "motion": self.motion,
            "bottleneck": self.bottleneck,
            "causal": self.causal,
        }


def apply_layers(layers, inputs, training=None):
    """Applies the layers of :meth:`STMBlock.make_layers` to arrays or Keras tensors (B, T, H, W, C)."""
    features = layers["conv1"](inputs, training=training)  # (B, T, H, W, filters)
    maps = layers["temporal"](features) if "temporal" in layers else features  # (B, T, H, W, filters)
    maps = layers["conv2"](maps, training=training)  # (B, T, H', W', filters)
    if "cmm" in layers:
        both = [maps, layers["cmm"](features, training=training)]  # 2 × (B, T, H', W', filters)
        if "fuse" in layers:
            maps = layers["fuse"](layers["concat"](both), training=training)
        else:
            maps = layers["activate"](layers["sum"](both))
    if "conv3" in layers:
        maps = layers["conv3"](maps, training=training)  # (B, T, H', W', C')
    shortcut = layers["shortcut"](inputs, training=training) if "shortcut" in layers else inputs
    return layers["relu"](layers["add"]([shortcut, maps]))  # (B, T, H', W', C')
