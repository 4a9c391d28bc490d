"""The ``data`` section."""

import os
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from keras_stss.config.section import Positive, Section, Share

DENSE_WINDOW = 64  # frames that a dense clip spans, as in the code of TSM


Amount = Annotated[float, Field(ge=0.0)]


class ColorJitterConfig(Section):
    """Random colours; each change is off at 0."""

    probability: Share = Field(1.0, description="share of the clips that are changed")
    brightness: Amount = Field(0.0, description="b: factor from 1 - b to 1 + b")
    contrast: Amount = Field(0.0, description="the same, around the clip's mean")
    saturation: Amount = Field(0.0, description="the same, around gray")
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = Field(0.0, description="h: shift from -h to h of the colour circle")


class RandAugmentConfig(Section):
    """RandAugment (Cubuk et al.)."""

    ops: Annotated[int, Field(ge=0)] = Field(0, description="operations on a clip, one after another; 0: none")
    magnitude: Annotated[float, Field(ge=0.0, le=10.0)] = Field(7.0, description="their strength, from 0 to 10")


class AugmentConfig(Section):
    """Training views beyond scale, place and mirror; all frames of a clip alike."""

    crop: Literal["multi_scale", "multi_scale_corner", "random_scale", "random_resized"] = Field(
        "multi_scale",
        description="multi_scale: sides from data.scales, anywhere; multi_scale_corner: the same in one of 13 fixed "
        "places; random_scale: the frame scaled to a random short side, cropped anywhere; random_resized: a box of "
        "random area and aspect ratio",
    )
    short_sides: tuple[Positive, Positive] | None = Field(
        None, description="random_scale: range of the short side in pixels (default: 8/7 to 10/7 of data.crop)"
    )
    area: tuple[Share, Share] | None = Field(
        None, description="random_resized: range of the box, as shares of the resized frame (default: 0.08 to 1)"
    )
    color_jitter: ColorJitterConfig = ColorJitterConfig()
    grayscale: Share = Field(0.0, description="share of the clips that lose their colour")
    rand_augment: RandAugmentConfig = RandAugmentConfig()
    erasing: Share = Field(0.0, description="share of the clips in which a box is covered with noise")

    @model_validator(mode="after")
    def _fits(self):
        for name, value, crop in (
            ("short_sides", self.short_sides, "random_scale"),
            ("area", self.area, "random_resized"),
        ):
            if value is None:
                continue
            if self.crop != crop:
                raise ValueError(f"{name} belongs to crop '{crop}'. Received: crop='{self.crop}'")
            if not 0 < value[0] <= value[1]:
                raise ValueError(f"{name} must be above 0 and rise. Received: {list(value)}")
        return self


def cores():
    """Number of cores that this process may use: a job often has a part of a machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_LISTS = ("train", "validation", "labels")
# Of the keys that say where annotations lie or how they are split: those of each format, where not _LISTS.
_OWN_KEYS = {
    "clips": ("annotations", "holdout"),
    "gym99": (*_LISTS, "annotations"),
    "gym288": (*_LISTS, "annotations"),
    "ucf101": (*_LISTS, "fold"),
    "hmdb51": ("annotations", "fold"),
    "records": ("holdout",),
}


class DataConfig(Section):
    """Which clips, and how a training or test sample is cut from one."""

    format: Literal[
        "something_v1", "something_v2", "kinetics", "diving48", "gym99", "gym288", "ucf101", "hmdb51", "frame_list",
        "records", "clips",
    ] = Field(
        description="annotation layout: a benchmark's own, frame_list: TSN/TSM list files, records: "
        "shards that keras-stss packed, or clips: a CSV of one's own"
    )  # fmt: skip
    root: str = Field(
        description="folder of the data set; relative to the working directory, or remote (gs://bucket/folder)"
    )
    train: str | None = Field(
        None, description="training annotations, relative to root (default: the layout's own name)"
    )
    validation: str | None = Field(None, description="validation annotations, relative to root")
    labels: str | None = Field(None, description="label list, relative to root")
    videos: str | None = Field(None, description="folder of the clips, relative to root")
    annotations: str | None = Field(
        None,
        description="clips: the CSV (path, label, optional split, start, end and group); gym99, gym288: the JSON of "
        "times; hmdb51: the folder of the splits",
    )
    fold: Annotated[int, Field(ge=1, le=3)] | None = Field(
        None, description="ucf101, hmdb51: which of the three splits (default: 1)"
    )
    group_column: str = Field("group", description="clips: the CSV's column that holds the group (scene, person, …)")
    holdout: str | None = Field(None, description="clips, records: the group to test on, or 'each' for all in turn")
    validation_share: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.2, description="clips: share held out for testing where neither a split column nor holdout says"
    )
    frames: Positive = Field(8, description="T: frames a clip")
    sampling: Literal["segment", "dense"] = Field(
        "segment",
        description="segment: a frame from each of T equal segments; dense: every (64 // T)-th of 64 frames",
    )
    resize: Positive | tuple[Positive, Positive] = Field(
        (240, 320), description="size before cropping: [height, width], or the short side as one number"
    )
    crop: Positive = Field(224, description="side of the square that the model sees, in pixels of the resized frame")
    scales: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(
        (1.0, 0.875, 0.75, 0.66), description="training: sides to draw a crop from, as shares of the resized short side"
    )
    flip: bool = Field(True, description="training: mirror half of the clips whose label names no side or turn")
    augment: AugmentConfig = AugmentConfig()
    workers: Positive = Field(default_factory=cores, description="clips decoded at the same time")
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
        if self.sampling == "dense" and self.frames > DENSE_WINDOW:
            raise ValueError(f"sampling 'dense' has at most {DENSE_WINDOW} frames. Received: frames={self.frames}")
        if self.augment.short_sides and self.crop > self.augment.short_sides[0]:
            raise ValueError(
                "augment.short_sides must not be smaller than crop. "
                f"Received: crop={self.crop}, short_sides={list(self.augment.short_sides)}"
            )
        if self.format == "clips" and self.annotations is None:
            raise ValueError("format 'clips' needs data.annotations, the CSV file of the clips")
        own = _OWN_KEYS.get(self.format, _LISTS)
        for name in (*_LISTS, "annotations", "holdout", "fold"):
            value = getattr(self, name)
            if value is not None and name not in own:
                raise ValueError(f"data.{name} does not belong to format '{self.format}'. Received: {name}={value!r}")
        return self
