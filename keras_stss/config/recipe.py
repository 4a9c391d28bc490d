"""The ``train`` and ``evaluate`` sections."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from keras_stss.config.section import Positive, Section

Amount = Annotated[float, Field(ge=0.0)]


_GAMMA = 0.1


class ScheduleConfig(Section):
    """Learning rate over the epochs."""

    kind: Literal["step", "cosine"] = "step"
    milestones: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="step: epochs after which the rate is multiplied by gamma"
    )
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = Field(_GAMMA, description="step: the factor")
    warmup_epochs: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="linear rise from zero over the first epochs"
    )

    @model_validator(mode="after")
    def _step_needs_milestones(self):
        if self.kind == "cosine" and self.milestones:
            raise ValueError("milestones belong to kind 'step'")
        if self.gamma != _GAMMA and not self.milestones:
            raise ValueError(f"gamma is the factor at milestones, of which there are none. Received: {self.gamma}")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise. Received: {list(self.milestones)}")
        return self


class RatesConfig(Section):
    """By how much the learning rate of a group of weights is multiplied; ``head`` is the last, dense layer."""

    bias: Amount = Field(1.0, description="biases (2 in the TSN and TSM code)")
    norm: Amount = Field(1.0, description="scale and shift of batch normalisation")
    block: Amount = Field(1.0, description="kernels of inserted motion blocks")
    head: Amount = Field(1.0, description="kernel of the head (5 in the TSN and TSM code for Kinetics)")
    head_bias: Amount = Field(1.0, description="bias of the head (10 there)")


class DecaysConfig(Section):
    """By how much the weight decay of a group of weights is multiplied; kernels have 1."""

    bias: Amount = 0.0
    norm: Amount = 0.0
    block: Amount = 1.0
    head: Amount = 1.0
    head_bias: Amount = 0.0


class TwinsConfig(Section):
    """Twins Training: two augmented views of each clip, and their correlation loss (STM, section 3.5)."""

    weight: Amount = Field(0.01, description="lambda: weight of the correlation loss")
    beta: Amount = Field(0.0039, description="weight of the correlations between different classes in it")


class BoardConfig(Section):
    """What TensorBoard gets beside the scalars."""

    every: Positive = Field(1, description="epochs between pictures")
    clips: Annotated[int, Field(ge=0)] = Field(4, description="training clips, as the model sees them")
    mistakes: Annotated[int, Field(ge=0)] = Field(8, description="wrong predictions, the surest first")
    motion: Annotated[int, Field(ge=0)] = Field(2, description="clips whose displacement maps are drawn")
    profile: tuple[Positive, Positive] | None = Field(
        None, description="first and last step to profile, counted from the start of the process"
    )

    @model_validator(mode="after")
    def _in_order(self):
        if self.profile and self.profile[0] > self.profile[1]:
            raise ValueError(f"profile must name the first step before the last. Received: {list(self.profile)}")
        return self


class TrainConfig(Section):
    """The recipe and the run."""

    run: str | None = Field(None, description="run directory (default: runs/<name of the config>)")
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto: go on with the run in the folder; never: refuse a folder that holds one"
    )
    epochs: Positive = 50
    batch_size: Positive = Field(64, description="clips a step, over all devices")
    accumulate: Positive = Field(1, description="parts that each device's share of a step is computed in, one by one")
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.01
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4
    clip_norm: Annotated[float, Field(gt=0.0)] | None = Field(20.0, description="bound of the gradient's global norm")
    rates: RatesConfig = RatesConfig()
    decays: DecaysConfig = DecaysConfig()
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    mixup: Amount = Field(0.0, description="alpha of mixup, 0 for none")
    cutmix: Amount = Field(0.0, description="alpha of CutMix, 0 for none; with mixup, each clip draws one of the two")
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None, description="decay of a moving average of the weights, which is then evaluated and saved as best"
    )
    batch_norm: Literal["train", "partial", "frozen"] = Field(
        "train", description="partial: all but the backbone's first keep their statistics, scale and shift; frozen: all"
    )
    sync_batch_norm: bool = Field(False, description="statistics over the clips of all devices")
    twins: TwinsConfig | None = Field(None, description="Twins Training; {} for the paper's weights")
    schedule: ScheduleConfig = ScheduleConfig()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    strategy: Literal["auto", "one", "mirrored", "multi_worker"] = Field(
        "auto",
        description="auto: multi_worker where a cluster is described, mirrored where there is more than one GPU or "
        "logical_cpus",
    )
    cluster: Literal["auto", "tf_config", "slurm", "kubernetes"] = Field(
        "auto", description="multi_worker: who knows the addresses (auto: TF_CONFIG, else Slurm, else Kubernetes)"
    )
    restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="multi_worker: how often a worker starts again after another one was lost"
    )
    wait: Positive = Field(600, description="multi_worker: seconds to wait for the other workers")
    devices: tuple[str, ...] = Field((), description="mirrored: devices such as GPU:0, GPU:1 (default: all there are)")
    logical_cpus: Annotated[int, Field(ge=1, le=1024)] = Field(
        1, description="mirrored: split the CPU into this many devices, and use them (to try several without GPUs)"
    )
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    xla: bool = Field(False, description="compile each device's part of a step with XLA")
    checkpoint_steps: Positive = Field(
        500, description="steps between checkpoints (one is also written after each epoch)"
    )
    keep_checkpoints: Positive = 3
    best: Literal["top1", "top5", "mean_class", "loss"] = Field(
        "top1", description="figure of the validation clips that chooses best.keras"
    )
    board: BoardConfig = BoardConfig()

    @model_validator(mode="after")
    def _fits(self):
        if self.strategy == "one" and self.devices:
            raise ValueError("devices belong to strategy 'mirrored'")
        if self.strategy == "one" and self.logical_cpus > 1:
            raise ValueError(f"logical_cpus belongs to strategy 'mirrored'. Received: {self.logical_cpus} with 'one'")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead along the momentum, which is 0: set nesterov to false")
        if self.batch_size % self.accumulate:
            raise ValueError(
                "batch_size must be a multiple of accumulate. Received: "
                f"batch_size={self.batch_size}, accumulate={self.accumulate}"
            )
        if self.twins and self.accumulate > 1:
            raise ValueError(
                "twins compares the clips of a whole step, which accumulate computes in parts: use one of them"
            )
        if self.twins and (self.mixup or self.cutmix):
            raise ValueError("twins compares two views of a clip, which mixup and cutmix blend with others: use one")
        if (self.mixup or self.cutmix) and self.batch_size < 2:
            raise ValueError("mixup and cutmix blend the clips of a batch in pairs: batch_size must be at least 2")
        if self.sync_batch_norm and self.xla:
            raise ValueError("XLA cannot compile the exchange of sync_batch_norm between devices: use one of them")
        if self.sync_batch_norm and self.batch_norm == "frozen":
            raise ValueError("sync_batch_norm has nothing to do where batch_norm is 'frozen': use one of them")
        return self


class EvaluateConfig(Section):
    """Testing on the validation clips."""

    batch_size: Positive = 16
    every: Positive = Field(1, description="epochs between evaluations (the last epoch is always evaluated)")
