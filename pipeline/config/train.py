"""The recipe of a training, and how often it saves."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipeline.config.base import Section, Share


class Augment(Section):
    """Random changes of a training image."""

    rotate: NonNegativeFloat
    translate: Annotated[float, Field(ge=0, lt=1)]
    flip: bool


class Train(Section):
    """A training recipe."""

    name: str
    epochs: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: NonNegativeFloat
    warmup_epochs: NonNegativeInt
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    precision: Literal["float32", "bfloat16", "float16"]
    ema: Share | None
    nonfinite: Literal["stop", "skip"]
    deterministic: bool
    augment: Augment

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0 and self.epochs > 1:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} leaves nothing of epochs={self.epochs}; "
                "set train.warmup_epochs below train.epochs"
            )
        if self.nesterov and self.momentum == 0:
            raise ValueError(
                "nesterov needs momentum; set train.momentum above 0 or nesterov=false"
            )
        return self


class Checkpoint(Section):
    """How often training saves and what it keeps; decides no result."""

    interval: str
    keep: PositiveInt
    interruption_hours: PositiveFloat

    @field_validator("interval")
    @classmethod
    def _interval_is_one(cls, value: str) -> str:
        if value != "auto" and not re.fullmatch(r"[1-9]\d* (step|minute)s?", value):
            raise ValueError(f"'{value}' is no interval; use auto, '500 steps' or '10 minutes'")
        return value
