"""The ``train`` and ``evaluate`` sections."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from keras_stss.config.section import Positive, Section


class ScheduleConfig(Section):
    """Learning rate over the epochs."""

    kind: Literal["step", "cosine"] = "step"
    milestones: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="step: epochs after which the rate is multiplied by gamma"
    )
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.1, description="step: the factor")
    warmup_epochs: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="linear rise from zero over the first epochs"
    )

    @model_validator(mode="after")
    def _step_needs_milestones(self):
        if self.kind == "cosine" and self.milestones:
            raise ValueError("milestones belong to kind 'step'")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise. Received: {list(self.milestones)}")
        return self


class TrainConfig(Section):
    """The recipe and the run."""

    run: str | None = Field(None, description="run directory (default: runs/<name of the config>)")
    epochs: Positive = 50
    batch_size: Positive = Field(64, description="clips a step, over all devices")
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.01
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(5e-4, description="on kernels only")
    clip_norm: Annotated[float, Field(gt=0.0)] | None = Field(20.0, description="bound of the gradient's global norm")
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    schedule: ScheduleConfig = ScheduleConfig()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    strategy: Literal["auto", "one", "mirrored"] = Field(
        "auto", description="auto: mirrored where there is more than one GPU"
    )
    devices: tuple[str, ...] = Field((), description="mirrored: devices such as GPU:0, GPU:1 (default: all there are)")
    logical_cpus: Positive = Field(
        1, description="split the CPU into this many logical devices (to try mirrored without GPUs)"
    )
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    checkpoint_steps: Positive = Field(
        500, description="steps between checkpoints (one is also written after each epoch)"
    )
    keep_checkpoints: Positive = 3

    @model_validator(mode="after")
    def _fits(self):
        if self.strategy == "one" and self.devices:
            raise ValueError("devices belong to strategy 'mirrored'")
        return self


class EvaluateConfig(Section):
    """Testing on the validation clips."""

    batch_size: Positive = 16
    every: Positive = Field(1, description="epochs between evaluations (the last epoch is always evaluated)")
