"""The blocks that ``model.insert`` names, with the arguments of their classes in ``keras_stss.blocks``."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from keras_stss.config.section import Positive, Section

Implementation = Literal["auto", "native", "reference"]
Deviation = Annotated[float, Field(gt=0.0)]


def odd_sides(window):
    """Validator of sides that have a middle; None passes."""
    if window and any(side % 2 == 0 for side in window):
        raise ValueError("sides must be odd")
    return window


def _distinct(offsets):
    if len(set(offsets)) != len(offsets):
        raise ValueError("offsets must be distinct")
    return offsets


class SelfyConfig(Section):
    """One SELFY block (the arguments of ``keras_stss.blocks.SELFYBlock``)."""

    temporal_offsets: tuple[int, ...] = Field((-2, -1, 0, 1, 2), min_length=1, description="temporal offsets l")
    window: tuple[Positive, Positive] = Field((9, 9), description="spatial window (U, V), odd")
    similarity: Literal["cosine", "dot", "embedded_gaussian"] = "cosine"
    channels: Positive = Field(128, description="channels of the features that are compared")
    strides: Literal[0.5, 1, 2, 4] = Field(
        2, description="stride of the convolution before the comparison; 0.5 doubles the map"
    )
    extraction: Literal["conv", "conv3d", "mlp", "soft_argmax", "kernel_soft_argmax"] = "conv"
    extraction_channels: tuple[Positive, ...] | None = Field(
        None, min_length=1, description="outputs of the extraction's layers (null: its own default)"
    )
    integration: Literal["conv", "mlp", "fc"] = Field("conv", description="fc: no spatial convolutions (SELFY-s)")
    integration_channels: tuple[Positive, ...] | None = Field(
        None, min_length=1, description="outputs of the integration's layers (null: its own default)"
    )
    output: Literal["r+v", "r", "v"] = Field("r+v", description="motion added to the input, alone, or not at all")
    implementation: Implementation = Field(
        "auto", description="auto: the compiled operations where they can run, keras.ops elsewhere"
    )
    variant: Literal["paper", "released"] = Field(
        "paper", description="released: as the authors' code, to load their weights"
    )

    _odd = field_validator("window")(odd_sides)
    _offsets = field_validator("temporal_offsets")(_distinct)

    @model_validator(mode="after")
    def _fits(self):
        if self.variant == "released" and (self.extraction, self.integration, self.output) != ("conv", "conv", "r+v"):
            raise ValueError("variant 'released' has extraction conv, integration conv and output r+v alone")
        if self.extraction.endswith("soft_argmax") and self.extraction_channels is not None:
            raise ValueError(f"extraction '{self.extraction}' has no layers: extraction_channels must be null")
        if self.integration == "fc" and self.integration_channels is not None:
            raise ValueError(
                "integration 'fc' has one layer, to the input's channels: integration_channels must be null"
            )
        if self.similarity == "embedded_gaussian" and self.implementation == "native":
            raise ValueError("similarity 'embedded_gaussian' has no native implementation")
        return self


class MotionSqueezeConfig(Section):
    """One MotionSqueeze block (the arguments of ``keras_stss.blocks.MotionSqueezeBlock``)."""

    channels: Positive | None = Field(64, description="channels of the features that are compared (null: the input's)")
    window: tuple[Positive, Positive] = Field((15, 15), description="spatial window (U, V), odd")
    similarity: Literal["cosine", "dot"] = Field("cosine", description="cosine: as the released code; dot: as eq. 1")
    sigma: Deviation | None = Field(
        5.0, description="deviation of the soft-argmax's kernel in positions (null: no kernel)"
    )
    temperature: Deviation = Field(0.01, description="temperature of the soft-argmax")
    confidence: bool = Field(True, description="the largest similarity as a third channel")
    backward: bool = Field(False, description="displacement of the next frame against this one as further channels")
    transform: Literal["separable", "conv"] = Field("separable", description="kind of the feature transformation")
    transform_kernels: tuple[Positive, ...] | None = Field(
        None, min_length=1, description="sides of the transformation's kernels, odd (null: 7, then 3)"
    )
    transform_channels: tuple[Positive, ...] = Field(
        (16, 32, 64), description="outputs of the transformation's layers but the last, which has the input's channels"
    )
    fusion: Literal["add", "multiply", "concat", "none"] = Field("add", description="none: the motion alone goes on")
    implementation: Implementation = Field(
        "auto", description="auto: the compiled operation where it can run, keras.ops elsewhere"
    )

    _odd = field_validator("window", "transform_kernels")(odd_sides)

    @model_validator(mode="after")
    def _fits(self):
        if self.transform_kernels and len(self.transform_kernels) != len(self.transform_channels) + 1:
            raise ValueError(
                "transform_kernels must hold one more than transform_channels. Received: "
                f"transform_kernels={list(self.transform_kernels)}, transform_channels={list(self.transform_channels)}"
            )
        return self


class StmConfig(Section):
    """One STM block (the arguments of ``keras_stss.blocks.STMBlock``)."""

    reduction: Positive = Field(16, description="r: the motion module works on 1/r of the channels")
    modules: Literal["both", "cstm", "cmm"] = "both"
    fusion: Literal["sum", "concat"] = Field("sum", description="how the two modules meet")
    kernels: Literal["learned", "frequency"] = Field("learned", description="frequency: fixed sum and difference")
    temporal: Literal["channelwise", "ordinary"] = Field("channelwise", description="convolution over time")
    spatial: Literal["ordinary", "channelwise"] = Field("ordinary", description="convolution over space")
    motion: Literal["channelwise", "ordinary"] = Field("channelwise", description="convolution of the motion module")

    @model_validator(mode="after")
    def _fixed_kernels(self):
        if self.kernels == "frequency" and "ordinary" in (self.temporal, self.motion):
            raise ValueError("kernels 'frequency' mix no channels: temporal and motion must be 'channelwise'")
        return self


class StcbConfig(Section):
    """One block of spatio-temporal convolutions (the arguments of ``keras_stss.blocks.STCBlock``)."""

    channels: Positive = Field(48, description="outputs of the convolutions")
    kernels: tuple[tuple[Positive, Positive, Positive], ...] = Field(
        ((3, 3, 3), (3, 3, 3), (1, 3, 3), (1, 3, 3)), min_length=1, description="their kernels (t, h, w), odd"
    )
    strides: Literal[0.5, 1, 2, 4] = Field(2, description="stride of the first convolution; 0.5 doubles the map")
    output: Literal["r+v", "r"] = Field("r+v", description="features added to the input, or alone")

    @field_validator("kernels")
    @classmethod
    def _odd(cls, value):
        return tuple(odd_sides(kernel) for kernel in value)


class NonLocalConfig(Section):
    """One non-local block (the arguments of ``keras_stss.blocks.NonLocalBlock``)."""

    channels: Positive | None = Field(None, description="channels of queries, keys and values (null: half the input's)")
    subsample: bool = Field(False, description="keys and values from maps of half the height and width")


class CorrespondenceConfig(Section):
    """One CP module (the arguments of ``keras_stss.blocks.CorrespondenceBlock``)."""

    neighbors: Positive = Field(8, description="k: most similar positions of the other frames")
    channels: tuple[Positive, Positive] | None = Field(
        None, description="outputs of the two layers on each pair (null: a quarter and half of the input's)"
    )


class CorrelationConfig(Section):
    """One correlation block of CorrNet (the arguments of ``keras_stss.blocks.CorrelationBlock``)."""

    channels: Positive | None = Field(None, description="channels that are correlated (null: a quarter of the input's)")
    window: tuple[Positive, Positive] = Field((7, 7), description="spatial window (U, V), odd")
    groups: Positive | None = Field(
        None, description="groups of channels, each with correlations of its own (null: 32, or what divides them)"
    )
    dilation: Positive = Field(2, description="distance between the window's positions")

    _odd = field_validator("window")(odd_sides)


class LocalAttentionConfig(Section):
    """Spatio-temporal local self-attention (the arguments of ``keras_stss.blocks.LocalAttentionBlock``)."""

    temporal_offsets: tuple[int, ...] = Field((-2, -1, 0, 1, 2), min_length=1, description="temporal offsets l")
    window: tuple[Positive, Positive] = Field((9, 9), description="spatial window (U, V), odd")
    channels: Positive = Field(32, description="channels of queries, keys and values, even")
    strides: Literal[1, 2] = Field(2, description="stride of the convolution before the attention")
    integration_channels: tuple[Positive, ...] = Field((64, 64, 64, 64), min_length=1)

    _odd = field_validator("window")(odd_sides)
    _offsets = field_validator("temporal_offsets")(_distinct)


class InsertConfig(Section):
    """What stands after one backbone stage: a name, options by name, or a list of those, one after another."""

    selfy: SelfyConfig | None = None
    motion_squeeze: MotionSqueezeConfig | None = None
    stm: StmConfig | None = None
    stcb: StcbConfig | None = None
    non_local: NonLocalConfig | None = None
    cp: CorrespondenceConfig | None = None
    correlation: CorrelationConfig | None = None
    local_attention: LocalAttentionConfig | None = None
    parallel: tuple["InsertConfig", ...] | None = Field(
        None, min_length=2, description="blocks that all see the same input; what each adds to it is summed"
    )
    sequence: tuple["InsertConfig", ...] | None = Field(None, min_length=1, description="the list form, spelled out")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value):
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, list | tuple):
            return {"sequence": list(value)}
        if isinstance(value, dict):
            return {name: ({} if options is None else options) for name, options in value.items()}
        return value

    @model_serializer(mode="wrap")
    def _named_blocks(self, serialize) -> Any:
        # A name without options means a block with default options, so blocks that are not there must not be named.
        return {name: options for name, options in serialize(self).items() if options is not None}

    @model_validator(mode="after")
    def _fits(self):
        if not self.named():
            raise ValueError(f"names no block; blocks are {', '.join(BLOCKS)}")
        if self.sequence is not None and len(self.named()) > 1:
            raise ValueError("sequence stands alone: put the other blocks into it")
        for member in self.parallel or ():
            names = member.named()
            if len(names) != 1 or names[0] not in ALONE:
                raise ValueError(
                    f"each member of parallel must be one block among {', '.join(ALONE)}. Received: {', '.join(names)}"
                )
        return self

    def named(self):
        """Names of what is there, in the order in which it stands."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]

    def blocks(self):
        """(name, section) of every block, those inside of lists and ``parallel`` too."""
        found = []
        for name in self.named():
            section = getattr(self, name)
            members = section if name in ("parallel", "sequence") else ()
            found += [block for member in members for block in member.blocks()] or [(name, section)]
        return found


#: Names of the blocks, in the order in which several of one stage follow one another.
BLOCKS = tuple(name for name in InsertConfig.model_fields if name not in ("parallel", "sequence"))
#: Options that make a block give its motion features alone, without its input: what ``parallel`` sums.
ALONE = {"selfy": {"output": "r"}, "motion_squeeze": {"fusion": "none"}, "stcb": {"output": "r"}}
