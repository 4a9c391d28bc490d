"""The typed schema of a YAML config file: ``data``, ``model``, ``train``, ``evaluate``.

Imports neither Keras nor TensorFlow, so that a bad file fails at once. Read a file with
:func:`load_config`; everything that is wrong with it comes back in one :class:`ConfigError`.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

STAGES = ("pool1", "res2", "res3", "res4", "res5")
BLOCKS = ("selfy", "motion_squeeze")

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Implementation = Literal["auto", "native", "reference"]


class _Loader(yaml.SafeLoader):
    """YAML as people read it: 1e-4 is a number, and 010, on or 2020-01-01 are text; no key is given twice.

    PyYAML's own rules (YAML 1.1) make 010 the number 8 and ``on`` true, so a group called 010 would be lost unseen.
    """

    yaml_implicit_resolvers: ClassVar = {}

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in keys[:number]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is given twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+)|[-+]?\.inf|\.nan", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


#: Types of keys that hold text.
TEXT = (str, str | None)


class ConfigError(ValueError):
    """A config that cannot be used. Its text is meant for the user: one line a fault."""


class Section(BaseModel):
    """A part of the file: unknown keys are errors, and values are never changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_and_names(cls, value, info):
        kind = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and kind is not bool:
            raise ValueError("must not be true or false")
        # A folder or group may be called 7.
        return str(value) if kind in TEXT and isinstance(value, int | float) else value


class DataConfig(Section):
    """Which clips, and how a training or test sample is cut from one."""

    format: Literal["something_v1", "something_v2", "clips"] = Field(
        description="annotation layout: Something-Something V1 or V2, or a plain CSV of one's own clips"
    )
    root: str = Field(description="folder of the data set; relative to the working directory")
    train: str | None = Field(
        None, description="training annotations, relative to root (default: the layout's own name)"
    )
    validation: str | None = Field(None, description="validation annotations, relative to root")
    labels: str | None = Field(None, description="label list, relative to root")
    videos: str | None = Field(None, description="folder of the clips, relative to root")
    annotations: str | None = Field(None, description="clips: the CSV (path, label, optional split and group)")
    group_column: str = Field("group", description="clips: the CSV's column that holds the group (scene, person, …)")
    holdout: str | None = Field(None, description="clips: the group to test on, or 'each' for all in turn")
    validation_share: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.2, description="clips: share held out for testing where neither a split column nor holdout says"
    )
    frames: Positive = Field(8, description="T: frames a clip, one from each of T equal segments")
    resize: Positive | tuple[Positive, Positive] = Field(
        (240, 320), description="size before cropping: [height, width], or the short side as one number"
    )
    crop: Positive = Field(224, description="side of the square that the model sees, in pixels of the resized frame")
    scales: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(
        (1.0, 0.875, 0.75, 0.66), description="training: sides to draw a crop from, as shares of the resized short side"
    )
    flip: bool = Field(True, description="training: mirror half of the clips whose label names no side or turn")
    workers: Positive = Field(default_factory=lambda: os.cpu_count() or 1, description="clips decoded at the same time")
    max_unreadable: Share = Field(0.2, description="share of a set's clips that may be unreadable before the run stops")

    @field_validator("scales")
    @classmethod
    def _some_scale(cls, value):
        if not value:
            raise ValueError("must name at least one scale, for example [1.0]")
        return value

    @model_validator(mode="after")
    def _fits(self):
        short_side = self.resize if isinstance(self.resize, int) else min(self.resize)
        if self.crop > short_side:
            raise ValueError(
                f"crop must not exceed the resized short side. Received: crop={self.crop}, resize={self.resize}"
            )
        own = {"annotations": self.annotations, "holdout": self.holdout}
        if self.format == "clips":
            own = {"train": self.train, "validation": self.validation, "labels": self.labels}
            if self.annotations is None:
                raise ValueError("format 'clips' needs data.annotations, the CSV file of the clips")
        for name, value in own.items():
            if value is not None:
                raise ValueError(f"data.{name} does not belong to format '{self.format}'. Received: {name}={value!r}")
        return self


def _odd_sides(window):
    if any(side % 2 == 0 for side in window):
        raise ValueError("sides must be odd")
    return window


class SelfyConfig(Section):
    """One SELFY block (the arguments of ``keras_stss.blocks.SELFYBlock``)."""

    temporal_offsets: tuple[int, ...] = Field((-2, -1, 0, 1, 2), min_length=1, description="temporal offsets l")
    window: tuple[Positive, Positive] = Field((9, 9), description="spatial window (U, V), odd")
    similarity: Literal["cosine", "dot"] = "cosine"
    channels: Positive = Field(128, description="channels of the features that are compared")
    strides: Annotated[int, Field(ge=1, le=2)] = Field(2, description="stride of the convolution before the comparison")
    extraction_channels: tuple[Positive, ...] = Field((4, 16, 64, 64), min_length=1)
    integration_channels: tuple[Positive, ...] = Field((64, 64, 64, 64), min_length=1)
    implementation: Implementation = Field(
        "auto", description="auto: the compiled operations where they can run, keras.ops elsewhere"
    )
    variant: Literal["paper", "released"] = Field(
        "paper", description="released: as the authors' code, to load their weights"
    )

    _odd = field_validator("window")(_odd_sides)

    @field_validator("temporal_offsets")
    @classmethod
    def _distinct(cls, value):
        if len(set(value)) != len(value):
            raise ValueError("offsets must be distinct")
        return value


class MotionSqueezeConfig(Section):
    """One MotionSqueeze block (the arguments of ``keras_stss.blocks.MotionSqueezeBlock``)."""

    channels: Positive | None = Field(64, description="channels of the features that are compared (null: the input's)")
    window: tuple[Positive, Positive] = Field((15, 15), description="spatial window (U, V), odd")
    similarity: Literal["cosine", "dot"] = Field("cosine", description="cosine: as the released code; dot: as eq. 1")
    sigma: Annotated[float, Field(gt=0.0)] | None = Field(
        5.0, description="deviation of the soft-argmax's kernel in positions (null: no kernel)"
    )
    temperature: Annotated[float, Field(gt=0.0)] = Field(0.01, description="temperature of the soft-argmax")
    transform_channels: tuple[Positive, ...] = Field(
        (16, 32, 64), description="outputs of the separable convolutions but the last, which has the input's channels"
    )
    implementation: Implementation = Field(
        "auto", description="auto: the compiled operation where it can run, keras.ops elsewhere"
    )

    _odd = field_validator("window")(_odd_sides)


class InsertConfig(Section):
    """Blocks after one backbone stage; where there are several they follow one another in this order."""

    selfy: SelfyConfig | None = None
    motion_squeeze: MotionSqueezeConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value):
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, dict):
            return {name: ({} if options is None else options) for name, options in value.items()}
        return value

    @model_serializer(mode="wrap")
    def _named_blocks(self, serialize):
        # A name without options means a block with default options, so blocks that are not there must not be named.
        return {name: options for name, options in serialize(self).items() if options is not None}

    @model_validator(mode="after")
    def _something(self):
        if all(getattr(self, name) is None for name in BLOCKS):
            raise ValueError(f"names no block; blocks are {', '.join(BLOCKS)}")
        return self

    @model_serializer(mode="wrap")
    def _named_ones(self, write):
        # A block that is written as null would come back with its defaults.
        return {name: options for name, options in write(self).items() if options is not None}


class ModelConfig(Section):
    """Backbone, temporal shift, motion blocks and head."""

    backbone: Literal["resnet10", "resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    width: Positive = Field(64, description="channels of the backbone's first stage")
    temporal: Literal["tsn", "tsm"] = Field(
        "tsm", description="tsn: frames apart; tsm: temporal shift in every residual branch"
    )
    shift_divisor: Annotated[int, Field(ge=2)] = Field(
        8, description="tsm: 1/divisor of the channels is shifted each way"
    )
    shift_every: Positive = Field(
        1, description="tsm: 2 shifts in every second residual block of a stage, as TSM's code does in ResNet-101"
    )
    insert: dict[Literal[STAGES], InsertConfig] = Field(default_factory=dict, description="{stage: {block: options}}")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    pretrained: str | None = Field(
        None,
        description="weights to start from: a file of torchvision, timm, KerasHub, TSM, MotionSqueeze or SELFY, what "
        "convert makes of one, or a run directory (head left out if it differs)",
    )
    pretrained_strict: bool = Field(False, description="refuse pretrained weights that do not fit in every part")
    init: str | None = Field(
        None, description="run directory or .keras file to start the weights from (head left out if it differs)"
    )

    @model_validator(mode="after")
    def _one_start(self):
        if self.init and self.pretrained:
            raise ValueError("init and pretrained both name weights to start from: give one")
        return self


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


class Config(Section):
    """A whole file."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


def find_config(name):
    """Path of a config: a path as given, or a bare name looked up in ``configs/``.

    Args:
        name: ``demo``, ``demo.yaml`` or a path.

    Raises:
        ConfigError: where there is no such file, with the names that there are.
    """
    given = Path(name)
    shipped = Path(__file__).resolve().parent.parent / "configs"
    tried = [given]
    if len(given.parts) == 1:
        file_name = given.name if given.suffix in (".yaml", ".yml") else f"{given.name}.yaml"
        tried += [Path(file_name), Path("configs") / file_name, shipped / file_name]
    for path in tried:
        if path.is_file():
            return path
    known = sorted({path.name for folder in (Path("configs"), shipped) for path in folder.glob("*.yaml")})
    raise ConfigError(
        f"no config {str(name)!r}: looked for {', '.join(dict.fromkeys(str(path) for path in tried))}."
        + _nearest(given.name, known)
        + (f" There are: {', '.join(known)}." if known else "")
    )


def load_config(name, overrides=()):
    """Reads and checks a config file.

    Args:
        name: path, or bare name looked up in ``configs/``.
        overrides: ``"key.path=value"`` strings; values are read as YAML.

    Returns:
        A :class:`Config`.

    Raises:
        ConfigError: naming every fault at once.
    """
    path = find_config(name)
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must hold the sections {', '.join(Config.model_fields)}. Received: {type(values).__name__}"
        )
    for override in overrides:
        _apply_override(values, override)
    return parse_config(values, source=str(path))


def parse_config(values, source="config"):
    """Checks a nested dictionary against the schema; raises :class:`ConfigError`."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults = [_describe(fault) for fault in error.errors()]
    raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults))


def dump_config(config):
    """The config as YAML text, every value spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def list_keys(section=Config, prefix=""):
    """Every key of a config file: (dotted key, default as text, meaning)."""
    rows = []
    for name, field in section.model_fields.items():
        inner = _classes(field.annotation)
        if inner and name != "insert":
            rows += list_keys(inner[0], f"{prefix}{name}.")
            continue
        default = "(must be given)" if field.is_required() else field.get_default(call_default_factory=True)
        rows.append((prefix + name, str(default), field.description or ""))
        if name == "insert":
            for block in BLOCKS:
                section = _classes(InsertConfig.model_fields[block].annotation)[0]
                rows += list_keys(section, f"{prefix}insert.STAGE.{block}.")
    return rows


def _apply_override(values, override):
    key, separator, text = override.partition("=")
    if not separator or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise ConfigError(f"an override must read key.path=value, for example train.epochs=10. Received: {override!r}")
    if _kind_at(key.split(".")) in TEXT and text[:1] not in "'\"":
        value = None if text in ("", "null", "~") else text  # as it stands: a group 010 is not the number 8
    else:
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError:
            raise ConfigError(f"the value of {key} is not valid YAML. Received: {text!r}") from None
    set_key(values, key, value)


def _kind_at(location):
    """The type of a key, or None where there is no such key."""
    section = _section_at(location[:-1])
    field = section.model_fields.get(location[-1]) if section else None
    return field.annotation if field else None


def set_key(values, key, value):
    """Sets a dotted key in a nested dictionary; raises :class:`ConfigError` where the way leads through a value."""
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        child = place.get(parent)
        if child in BLOCKS:
            child = place[parent] = {child: {}}  # a block by its bare name
        elif child is None:
            child = place[parent] = {}
        elif not isinstance(child, dict):
            raise ConfigError(f"{key} cannot be set: {parent} holds {child!r}, not a section")
        place = child
    place[last] = value


def _describe(fault):
    location = ".".join(str(part) for part in fault["loc"] if part not in ("[key]",))
    if fault["type"] == "extra_forbidden":
        *parents, name = fault["loc"]
        section = _section_at(parents)
        known = list(section.model_fields) if section else []
        return f"unknown key {location}.{_nearest(str(name), known)} Known here: {', '.join(known)}."
    if fault["type"] == "literal_error" and fault["loc"][-1] == "[key]":
        name = str(fault["loc"][-2])
        return f"unknown stage {location}.{_nearest(name, STAGES)} Stages are {', '.join(STAGES)}."
    if fault["type"] == "missing":
        return f"{location} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    received = "" if isinstance(fault["input"], dict | BaseModel) else f" Received: {fault['input']!r}"
    return f"{location}: {message}" + (received if "Received" not in message else "")


def _section_at(location):
    section = Config
    for part in location:
        field = section.model_fields.get(part) if section else None
        if field is None:
            # The keys of `insert` are stages, not fields.
            section = InsertConfig if section is ModelConfig or part in STAGES else None
            continue
        section = next((cls for cls in _classes(field.annotation)), section if part == "insert" else None)
    return section


def _classes(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [cls for argument in getattr(annotation, "__args__", ()) for cls in _classes(argument)]


def _nearest(name, known):
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {matches[0]}?" if matches else ""
