"""The recipe of a training, and how often it saves."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

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
from pipeline.config.policy import POLICIES, TIMM_POLICY, VALID

Schedule = Literal[
    "cosine", "linear", "polynomial", "constant", "step", "onecycle", "exponential", "restarts",
    "plateau",
]  # fmt: skip
FALLING: tuple[Schedule, ...] = ("step", "exponential", "plateau")
OF_SCHEDULE: dict[str, tuple[Schedule, ...]] = {
    "decay_epochs": FALLING,
    "decay_rate": FALLING,
    "decay_power": ("polynomial",),
    "cycle_epochs": ("restarts",),
    "cycle_growth": ("restarts",),
}
"""Settings that only some schedules read."""
NEEDED: dict[Schedule, tuple[str, str]] = {
    "step": ("decay_epochs", "falls every so many epochs; give train.decay_epochs, e.g. 30"),
    "exponential": ("decay_epochs", "falls evenly in that time; give train.decay_epochs, e.g. 30"),
    "plateau": ("decay_epochs", "falls after so many epochs without a lower validation loss; give "
                "train.decay_epochs, e.g. 10"),
    "polynomial": ("decay_power", "falls by a power of the rest; give train.decay_power, e.g. 2"),
    "restarts": ("cycle_epochs", "begins anew after so many epochs; give train.cycle_epochs, "
                 "e.g. 10"),
}  # fmt: skip
"""The setting that a schedule cannot be without, and why."""


Epochs = Annotated[list[PositiveInt], Field(min_length=1)]


class Augment(Section):
    """Random changes of a training image, in this order; the last two mix images of a batch.

    Args:
        crop: `resized` takes a part of random area and shape, `pad` a square after padding by
            `padding` pixels; `none` scales and cuts as evaluation does.
        scale: smallest and largest share of the area, for `crop=resized`.
        ratio: smallest and largest width / height, for `crop=resized`.
        padding: pixels, for `crop=pad`.
        rotate: degrees, either way.
        translate: share of the side, either way.
        jitter: how far brightness, contrast and saturation may be scaled from 1, and hue be
            turned, in shares of the circle.
        policy: a sequence of operations drawn for each image: one of torchvision's with its default
            strengths, or a string of timm's, e.g. rand-m9-mstd0.5-inc1 (see `timm.data`).
        erase: probability that a rectangle is filled with noise (random erasing).
        cutout: side of a square that is filled with the mean, pixels; 0: none.
        cutout_clip: whether the centre of that square is anywhere in the image, and what is beyond
            the border cut off (DeVries and Taylor, 2017); false: it is all in the image.
        mixup, cutmix: alpha of the Beta distribution that mixing is drawn from; 0: off.
        repeats: how often an image is in an epoch's batches, differently each time; an epoch
            stays as long as it is.
        progressive: side of the images in the first epoch, growing to `data.image_size`; null: off.
    """

    crop: Literal["none", "pad", "resized"]
    scale: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)]
    ratio: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)]
    padding: NonNegativeInt
    rotate: NonNegativeFloat
    translate: Annotated[float, Field(ge=0, lt=1)]
    flip: bool
    jitter: Annotated[list[NonNegativeFloat], Field(min_length=4, max_length=4)]
    policy: str | None
    erase: Annotated[float, Field(ge=0, le=1)]
    cutout: NonNegativeInt
    cutout_clip: bool = False
    mixup: NonNegativeFloat
    cutmix: NonNegativeFloat
    repeats: PositiveInt
    progressive: PositiveInt | None

    @field_validator("policy")
    @classmethod
    def _policy_is_one(cls, value: str | None) -> str | None:
        if value is not None and value not in POLICIES and not TIMM_POLICY.fullmatch(value):
            raise ValueError(f"{value} is no policy; use {VALID}")
        return value


class Budget(Section):
    """What a training may cost.

    Args:
        plain_epochs: as much as so many epochs of the plain network; null: no limit, `epochs`
            tells how long it is.
    """

    plain_epochs: Annotated[float, Field(ge=1, le=1e9, allow_inf_nan=False)] | None = None


class Train(Section):
    """A training recipe.

    Args:
        batch_size: images of a step, over all processes and parts.
        accumulate: parts that each process goes through one after the other; their gradients are
            averaged before the step.
        optimizer: `sgd`, or the name of one of timm's; see `networks.optimizers`.
        optimizer_args: what one of timm's takes beside, e.g. betas; `momentum` and `nesterov` are
            those of sgd.
        head_lr: learning rate of the class head, on the same schedule; null: as the rest.
        decay_norms: whether weights of norms, and biases, decay too.
        layer_decay: the learning rate of a layer is this share of that of the layer behind it; see
            `networks.layers`.
        schedule: of the learning rate; see `training.pace`.
        decay_epochs: of `schedule=step`: after how many epochs it falls, each time, or a list of
            the epochs after which it does; of `exponential`: in how many epochs it does; of
            `plateau`: after how many epochs without a lower validation loss.
        decay_rate: of those: to what share it falls.
        decay_power: of `schedule=polynomial`: which power of the share that is left; 1 is `linear`.
        cycle_epochs, cycle_growth: of `schedule=restarts`: how many epochs the first cosine takes,
            and how many times as long as the one before each further one does.
        clip_grad: the largest norm of all gradients together; larger ones are scaled down to it.
        epochs: passes over the images; with a budget, the most there can be
            (see `pipeline.config.rules`).
        recalibrate: batches of which all batch norms take their running statistics anew, after each
            epoch that nothing grows after; null: none.
        recalibrate_until: epochs after which that ends; null: to the last.
        precision: `float32` in every bit; `tf32` lets a GPU round what it multiplies to 10 bits;
            `bfloat16` and `float16` are autocast, the last with loss scaling.
        ema_warmup: whether averages follow the weights more closely at first; see `optim.Averaged`.
        patience: after how many epochs without a better top-1 a training ends.
        ship: the epoch whose network the later stages get: the last, or that of the best top-1.
        compile: what torch.compile is given: nothing, each block (see `training.compiling`), or the
            whole network.
        profile: how many steps torch's profiler watches (see `training.profile`).
    """

    name: str
    epochs: PositiveInt
    budget: Budget = Budget()
    batch_size: PositiveInt
    accumulate: PositiveInt = 1
    optimizer: Annotated[str, Field(min_length=1)] = "sgd"
    optimizer_args: dict[str, Any] | None = None
    lr: PositiveFloat
    head_lr: PositiveFloat | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: NonNegativeFloat
    decay_norms: bool = False
    clip_grad: PositiveFloat | None = None
    layer_decay: Share | None = None
    schedule: Schedule = "cosine"
    decay_epochs: PositiveInt | Epochs | None = None
    decay_rate: Share = 0.1
    decay_power: PositiveFloat | None = None
    cycle_epochs: PositiveInt | None = None
    cycle_growth: PositiveInt = 1
    warmup_epochs: NonNegativeInt
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    precision: Literal["float32", "tf32", "bfloat16", "float16"]
    compile: Literal["off", "blocks", "model"] = "off"
    ema: Share | None
    ema_warmup: bool = False
    patience: PositiveInt | None = None
    ship: Literal["last", "best"] = "last"
    recalibrate: PositiveInt | None = None
    recalibrate_until: PositiveInt | None = None
    nonfinite: Literal["stop", "skip"]
    deterministic: bool
    profile: Annotated[int, Field(ge=1, le=500)] | None = None
    augment: Augment

    @field_validator("budget", mode="before")
    @classmethod
    def _none_is_no_limit(cls, value: Any) -> Any:
        return Budget() if value is None else value

    @field_validator("decay_epochs", mode="before")
    @classmethod
    def _epochs_are_some(cls, value: Any) -> Any:
        epochs = value if isinstance(value, list) else [1 if value is None else value]
        if not epochs or any(type(epoch) is not int or epoch < 1 for epoch in epochs):
            raise ValueError(
                f"{value} is not a number of epochs or a list of them, as 30 or [30,60]"
            )
        if len(set(epochs)) < len(epochs):
            raise ValueError(f"{value} names an epoch twice; name it once")
        return value

    @field_validator("compile", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # what YAML reads of an off without quotes

    @model_validator(mode="after")
    def _schedule_is_whole(self) -> Self:
        needed, why = NEEDED.get(self.schedule, (None, ""))
        if needed and getattr(self, needed) is None:
            raise ValueError(f"schedule={self.schedule} {why}")
        falls = self.schedule in OF_SCHEDULE["decay_epochs"]
        if isinstance(self.decay_epochs, list) and falls and self.schedule != "step":
            raise ValueError(
                f"schedule={self.schedule} takes one number for train.decay_epochs; a list is for "
                "train.schedule=step"
            )
        if self.schedule == "onecycle" and self.warmup_epochs:
            raise ValueError("schedule=onecycle rises by itself; set train.warmup_epochs=0")
        return self

    @model_validator(mode="after")
    def _something_to_end(self) -> Self:
        if self.recalibrate_until is not None and self.recalibrate is None:
            raise ValueError(
                f"recalibrate_until={self.recalibrate_until} ends what does not begin; give "
                "train.recalibrate, e.g. 200, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0 and self.epochs > 1:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} leaves nothing of epochs={self.epochs}; "
                "set train.warmup_epochs below train.epochs"
            )
        if self.optimizer_args and self.optimizer == "sgd":
            raise ValueError(
                "optimizer_args are for optimizers of timm; sgd has train.momentum and nesterov"
            )
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
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
        if value != "auto" and not re.fullmatch(r"[1-9]\d{0,8} (step|minute)s?", value):
            raise ValueError(f"'{value}' is no interval; use auto, '500 steps' or '10 minutes'")
        return value
