"""The ``data`` section."""

import os
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from keras_stss.config.section import Positive, Section, Share


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
