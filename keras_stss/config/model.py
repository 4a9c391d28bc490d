"""The ``model`` section."""

import difflib
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from keras_stss.config.blocks import InsertConfig, StmConfig, odd_sides
from keras_stss.config.section import Positive, Section

_RESNET = ("pool1", "res2", "res3", "res4", "res5")
#: After which stages of a backbone blocks may stand.
STAGES = MappingProxyType({
    **dict.fromkeys(("resnet10", "resnet18", "resnet34", "resnet50", "resnet101"), _RESNET),
    "mobilenet_v2": tuple(f"stage{number}" for number in range(1, 6)),
    "i3d": ("conv1", "conv2", *(f"mixed_{name}" for name in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"))),
})  # fmt: skip
#: How a backbone can see time.
TEMPORAL = MappingProxyType({"mobilenet_v2": ("tsn", "tsm"), "i3d": ("3d",)})
#: Blocks that can do without later frames.
CAUSAL_BLOCKS = ("selfy", "motion_squeeze", "stm")
STM_STAGES = ("res2", "res3", "res4", "res5")


class StmNetworkConfig(StmConfig):
    """STM blocks in the place of residual blocks."""

    stages: tuple[Literal[STM_STAGES], ...] = Field(
        STM_STAGES, min_length=1, description="stages whose residual blocks are STM blocks"
    )
    per_stage: Literal["all", "first"] = Field("all", description="all residual blocks of these stages, or the first")


class NetworkConfig(Section):
    """Backbone, temporal modelling, motion blocks and head."""

    backbone: Literal[tuple(STAGES)] = "resnet50"
    width: Positive = Field(
        64, description="channels of a ResNet's first stage; other backbones have width / 64 times their channels"
    )
    temporal: Literal["tsn", "tsm", "stm", "3d"] = Field(
        "tsm",
        description="tsn: frames apart; tsm: temporal shift in every residual branch; stm: STM blocks in the place of "
        "residual blocks; 3d: i3d's own convolutions",
    )
    shift_divisor: Annotated[int, Field(ge=2)] = Field(
        8, description="tsm: 1/divisor of the channels is shifted each way"
    )
    shift_every: Positive = Field(
        1, description="tsm: 2 shifts in every second residual block of a stage, as TSM's code does in ResNet-101"
    )
    stm: StmNetworkConfig = Field(StmNetworkConfig(), description="stm: which blocks, and their form")
    causal: bool = Field(
        False,
        description="no frame sees a later one, so that the model can take a live stream: shift, STM and MotionSqueeze "
        "have their causal forms (of the same weights), SELFY needs temporal_offsets of 0 and less",
    )
    stem_kernel: tuple[Positive, Positive, Positive] | None = Field(
        None, description="i3d: first kernel (t, h, w) (null: 7, 7, 7; MotionSqueeze takes 1, 7, 7)"
    )
    stem_padding: Literal["same", "symmetric"] = Field(
        "same", description="i3d: same as the original; symmetric where it starts from PyTorch's 2-D weights"
    )
    insert: dict[str, InsertConfig] = Field(
        default_factory=dict, description="{stage: block}: a name, {name: options}, or a list of those"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    pretrained: str | None = Field(
        None,
        description="weights to start from: a file of torchvision, timm, KerasHub, TSM, MotionSqueeze, SELFY or I3D, "
        "what convert makes of one, or a run directory (head left out if it differs)",
    )
    pretrained_strict: bool = Field(False, description="refuse pretrained weights that do not fit in every part")

    @field_validator("stem_kernel")
    @classmethod
    def _odd(cls, value):
        return odd_sides(value)

    @field_validator("insert")
    @classmethod
    def _known_stages(cls, value, info):
        backbone = info.data.get("backbone")
        for stage in value if backbone else ():
            if stage not in STAGES[backbone]:
                near = difflib.get_close_matches(stage, STAGES[backbone], n=1, cutoff=0.5)
                raise ValueError(
                    f"unknown stage {stage}."
                    + (f" Did you mean {near[0]}?" if near else "")
                    + f" Stages of {backbone} are {', '.join(STAGES[backbone])}. Received: {', '.join(value)}"
                )
        return value

    @model_validator(mode="after")
    def _goes_together(self):
        possible = TEMPORAL.get(self.backbone, ("tsn", "tsm", "stm"))
        if self.temporal not in possible:
            raise ValueError(
                f"temporal of backbone {self.backbone} must be {' or '.join(possible)}. Received: "
                f"temporal={self.temporal}"
            )
        if self.temporal != "stm" and self.stm != StmNetworkConfig():
            raise ValueError(f"the section stm belongs to temporal 'stm'. Received: temporal={self.temporal}")
        if self.backbone != "i3d" and (self.stem_kernel is not None or self.stem_padding != "same"):
            raise ValueError(
                f"stem_kernel and stem_padding belong to backbone 'i3d'. Received: backbone={self.backbone}"
            )
        return self

    @model_validator(mode="after")
    def _sees_no_later_frame(self):
        if not self.causal:
            return self
        if self.backbone == "i3d":
            raise ValueError("i3d has no causal form: its convolutions see later frames. Received: backbone=i3d")
        for stage, chosen in self.insert.items():
            for name, section in chosen.blocks():
                if name not in CAUSAL_BLOCKS:
                    raise ValueError(
                        f"insert.{stage}.{name}: has no causal form; those that have are {', '.join(CAUSAL_BLOCKS)}"
                    )
                if name == "selfy" and max(section.temporal_offsets) > 0:
                    raise ValueError(
                        f"insert.{stage}.selfy.temporal_offsets: must be 0 and less with causal, as later frames have "
                        f"not come yet. Received: {list(section.temporal_offsets)}"
                    )
        return self


class MemberConfig(NetworkConfig):
    """One model of an ensemble."""

    frames: Positive = Field(description="frames of a clip that this model sees, evenly spaced")


class ModelConfig(NetworkConfig):
    """The network, or several that vote."""

    init: str | None = Field(
        None, description="run directory or .keras file to start the weights from (head left out if it differs)"
    )
    ensemble: tuple[MemberConfig, ...] = Field(
        (), description="models whose scores are averaged, each a model section with its frames; stands alone"
    )

    @model_validator(mode="after")
    def _one_start(self):
        if self.init and self.pretrained:
            raise ValueError("init and pretrained both name weights to start from: give one")
        return self

    @model_validator(mode="after")
    def _alone(self):
        fields = type(self).model_fields
        others = [
            name
            for name, value in self
            if name != "ensemble" and value != fields[name].get_default(call_default_factory=True)
        ]
        if self.ensemble and others:
            raise ValueError(
                f"ensemble stands alone: its members hold the keys of a model section. Received: {', '.join(others)}"
            )
        if len(self.ensemble) == 1:
            raise ValueError("an ensemble needs at least two models")
        return self

    @model_serializer(mode="wrap")
    def _either(self, serialize) -> Any:
        values = serialize(self)
        return {"ensemble": values["ensemble"]} if self.ensemble else values
