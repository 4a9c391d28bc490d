"""A part of a config file, and what is common to all."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
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
