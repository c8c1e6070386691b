"""Settings of training and of its checkpoints."""

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
    "plateau", "tanh", "wsd", "rsqrt",
]  # fmt: skip
FALLING: tuple[Schedule, ...] = ("step", "exponential", "plateau")
ENDING: tuple[Schedule, ...] = ("wsd", "rsqrt")
OF_SCHEDULE: dict[str, tuple[Schedule, ...]] = {
    "decay_epochs": FALLING + ENDING,
    "decay_rate": FALLING,
    "decay_power": ("polynomial",),
    "cycle_epochs": ("restarts",),
    "cycle_growth": ("restarts",),
}
"""The schedules that read a setting."""
NEEDED: dict[Schedule, tuple[str, str]] = {
    "step": ("decay_epochs", "falls every so many epochs; give train.decay_epochs, e.g. 30"),
    "exponential": ("decay_epochs", "falls evenly in that time; give train.decay_epochs, e.g. 30"),
    "plateau": ("decay_epochs", "falls after so many epochs without a lower validation loss; give "
                "train.decay_epochs, e.g. 10"),
    "polynomial": ("decay_power", "falls by a power of the rest; give train.decay_power, e.g. 2"),
    "restarts": ("cycle_epochs", "starts again after so many epochs; give train.cycle_epochs, "
                 "e.g. 10"),
}  # fmt: skip
"""The setting that a schedule requires, and the reason."""


Epochs = Annotated[list[PositiveInt], Field(min_length=1)]


class Augment(Section):
    """Random changes of a training image, in this order; mixup and cutmix mix images of a batch.

    Args:
        crop: `resized`: a crop of random area and shape; `pad`: a random square after padding by
            `padding` pixels; `none`: scale and crop the centre, as in evaluation.
        scale: smallest and largest share of the area, for `crop=resized`.
        ratio: smallest and largest width / height, for `crop=resized`.
        padding: pixels, for `crop=pad`.
        rotate: largest angle, degrees, in both directions.
        translate: largest shift, as a share of the side, in both directions.
        jitter: largest change of brightness, contrast and saturation (factor 1 ± value), and of
            hue (share of the colour circle).
        policy: random sequence of operations: a policy of torchvision with its default strengths,
            or a string of timm, e.g. rand-m9-mstd0.5-inc1 (see `timm.data`).
        erase: probability that a rectangle is filled with noise (random erasing).
        cutout: side of a square that is filled with the mean, pixels; 0: off.
        cutout_clip: true: the centre of the square is anywhere in the image, and the square is
            clipped at the border (DeVries and Taylor, 2017); false: the square is inside the image.
        mixup, cutmix: alpha of the Beta distribution of the mixing ratio; 0: off.
        repeats: number of times that an image occurs in an epoch's batches, augmented differently
            (repeated augmentation). The number of steps of an epoch stays the same.
        progressive: side of the images in the first epoch, pixels; it grows to `data.image_size`.
            null: off.
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
            raise ValueError(f"{value} is not a policy; use {VALID}")
        return value


class Budget(Section):
    """The cost at which a training ends.

    Args:
        plain_epochs: budget in epochs of the plain network; null: no limit, the training has
            `epochs` epochs.
    """

    plain_epochs: Annotated[float, Field(ge=1, le=1e9, allow_inf_nan=False)] | None = None


class Train(Section):
    """A training recipe.

    Args:
        batch_size: images of a step, over all processes and micro-batches.
        accumulate: micro-batches per process and step; their gradients are averaged.
        optimizer: `sgd`, or the name of an optimizer of timm; see `networks.optimizers`.
        optimizer_args: further arguments of an optimizer of timm, e.g. betas; `momentum` and
            `nesterov` are for sgd.
        head_lr: learning rate of the classifier, on the same schedule; null: `lr`.
        decay_norms: whether weight decay applies to norms and biases, too.
        layer_decay: learning rate of a layer divided by that of the next layer; see
            `networks.layers`.
        schedule: schedule of the learning rate; see `training.pace`.
        decay_epochs: `schedule=step`: epochs between two drops of the learning rate, or the list
            of epochs after which it drops; `exponential`: epochs in which it falls by one factor;
            `plateau`: epochs without a lower validation loss before it drops; `wsd`, `rsqrt`:
            last epochs, in which it falls to zero; null: a fifth of those after warm-up.
        decay_rate: factor of a drop, for these schedules.
        decay_power: `schedule=polynomial`: power of the share of the training that is left; 1 is
            `linear`.
        cycle_epochs, cycle_growth: `schedule=restarts`: epochs of the first cosine, and the factor
            by which each further one is longer than the one before.
        clip_grad: largest norm of all gradients together; larger gradients are scaled down to it.
        epochs: passes over the images; with a budget, the largest possible number
            (see `pipeline.config.rules`).
        recalibrate: batches from which the running statistics of all batch norms are recomputed,
            after each epoch without an adjustment; null: off.
        recalibrate_until: number of epochs with recalibration; null: all.
        precision: `float32`: exact; `tf32`: a GPU rounds the factors of products to 10 bits;
            `bfloat16`, `float16`: autocast, `float16` with loss scaling.
        ema_warmup: whether averages follow the weights more closely at first; see `optim.Averaged`.
        patience: number of epochs without a better top-1 after which training stops.
        ship: which network the later stages get: that of the last epoch, or of the best top-1.
        compile: argument of torch.compile: nothing, each block (see `training.compiling`), or the
            whole network.
        profile: number of steps to profile (see `training.profile`).
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
        return "off" if value is False else value  # YAML reads `off` without quotes as False

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
        if self.schedule == "rsqrt" and not self.warmup_epochs:
            raise ValueError(
                "schedule=rsqrt measures time in warm-ups; give train.warmup_epochs, e.g. 5"
            )
        return self

    @model_validator(mode="after")
    def _something_to_end(self) -> Self:
        if self.recalibrate_until is not None and self.recalibrate is None:
            raise ValueError(
                f"recalibrate_until={self.recalibrate_until} needs train.recalibrate; give "
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
    """Settings for how often training saves and how much it keeps; they do not affect results."""

    interval: str
    keep: PositiveInt
    interruption_hours: PositiveFloat

    @field_validator("interval")
    @classmethod
    def _interval_is_one(cls, value: str) -> str:
        if value != "auto" and not re.fullmatch(r"[1-9]\d{0,8} (step|minute)s?", value):
            raise ValueError(f"'{value}' is not an interval; use auto, '500 steps' or '10 minutes'")
        return value
