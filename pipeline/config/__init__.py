"""Define the schema of `conf/`: one class per section, one field per key.

Hydra composes the settings, and these classes check them once. A folder in `conf/`, its section and
its class have the same name.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.config.base import STAGE_NAMES, ExportFormat, Section, StageName, Values, Variant
from pipeline.config.cluster import Cluster
from pipeline.config.data import Data, Prep
from pipeline.config.model import Method, Model
from pipeline.config.train import Checkpoint, Train
from pipeline.display.errors import nearest


class Stages(Section):
    """The stages that this launch runs."""

    run: list[StageName] = Field(min_length=1)


class Fuse(Section):
    """The conditions for accepting a fused network, and its export formats."""

    tolerance: PositiveFloat
    images: PositiveInt
    fold_bn: bool
    exports: list[ExportFormat]
    opset: Annotated[int, Field(ge=18)]
    licence: str | None


class Eval(Section):
    """Settings of the eval stage."""

    batch_size: PositiveInt
    exports: bool
    shifts: list[Literal["blur", "noise", "jpeg"]]
    gallery: NonNegativeInt


class Latency(Section):
    """Settings of the latency stage."""

    batch_sizes: list[PositiveInt] = Field(min_length=1)
    repeats: Annotated[int, Field(ge=10)]
    threads: PositiveInt | None
    also: list[Variant]
    load: Annotated[float, Field(gt=0, lt=1)]


Curves = Literal["tensorboard", "csv"]


class Watched(Section):
    """The formats in which a run's curves are written besides W&B."""

    also: list[Curves] = Field(default=[])

    @field_validator("also", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class Disabled(Watched):
    """No W&B run is written."""

    mode: Literal["disabled"]


class Wandb(Watched):
    """The destination of the Weights & Biases run."""

    mode: Literal["offline", "online"]
    project: str
    entity: str | None


Tracking = Annotated[Disabled | Wandb, Field(discriminator="mode")]


class Config(Section):
    """All settings of a run."""

    stage: Stages
    again: list[StageName] = Field(default=[])
    data: Data
    model: Model
    method: Method
    prep: Prep
    train: Train
    checkpoint: Checkpoint
    fuse: Fuse
    eval: Eval
    latency: Latency
    cluster: Cluster
    tracking: Tracking
    name: str
    group: str | None
    seed: NonNegativeInt
    root: str = Field(min_length=1)
    dry_run: bool
    wait: bool | None

    @field_validator("again", mode="before")
    @classmethod
    def _stages(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list):
            raise ValueError("name the stages to repeat, e.g. again=[latency]")
        for name in names:
            if name not in STAGE_NAMES:
                cure = nearest(str(name), list(STAGE_NAMES))
                raise ValueError(f"there is no stage '{name}'; {cure}")
        return names

    @field_validator("name", "group")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,127}", value):
            raise ValueError(
                f"'{value}' cannot be a directory name; use letters a-z, digits and . _ - + = "
                "(no slashes, no blanks, at most 128 characters, the first a letter or a digit)"
            )
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for section, size in (("train", self.train.batch_size), ("eval", self.eval.batch_size)):
            processes = self.cluster.processes(section) * self.cluster.given(section, "nodes")
            if size % processes:
                raise ValueError(
                    f"{section}.batch_size={size} cannot be split over {processes} processes; "
                    f"use a multiple of {processes} or other cluster.processes_per_node"
                )
        processes = self.cluster.processes("train") * self.cluster.given("train", "nodes")
        if self.train.batch_size % (parts := processes * self.train.accumulate):
            raise ValueError(
                f"train.batch_size={self.train.batch_size} cannot be split over "
                f"{processes} process{'es' * (processes != 1)} into {self.train.accumulate} parts "
                f"each (train.accumulate); use a multiple of {parts}"
            )
        if self.train.augment.cutout >= self.data.image_size:
            raise ValueError(
                f"train.augment.cutout={self.train.augment.cutout} covers whole images of "
                f"data.image_size={self.data.image_size}: nothing is left to learn from; use less"
            )
        if self.model.family == "vgg" and self.data.image_size < 2 ** len(self.model.widths):
            raise ValueError(
                f"data.image_size={self.data.image_size} vanishes in the {len(self.model.widths)} "
                f"poolings of model={self.model.name}; use at least {2 ** len(self.model.widths)}"
            )
        return self


WHERE = (
    "cluster", "checkpoint", "tracking", "stage", "again", "root", "dry_run", "wait", "name",
    "group",
)  # fmt: skip
"""Keys that do not affect results (where stages run, saving, tracking): no fingerprint has them."""

ADDED: Values = {
    "data.channels": 3,
    "model.pretrained": None,
    "model.pretrained_sha256": None,
    "model.freeze": [],
    "train.head_lr": None,
    "train.compile": "off",
    "train.accumulate": 1,
    "train.optimizer": "sgd",
    "train.optimizer_args": None,
    "train.decay_norms": False,
    "train.clip_grad": None,
    "train.schedule": "cosine",
    "train.decay_epochs": None,
    "train.decay_rate": 0.1,
    "train.decay_power": None,
    "train.cycle_epochs": None,
    "train.cycle_growth": 1,
    "train.layer_decay": None,
    "train.ema_warmup": False,
    "train.augment.cutout_clip": False,
    "train.patience": None,
    "train.ship": "last",
    "train.budget": {"plain_epochs": None},
    "train.profile": None,
    "model.drop": None,
    "model.drop_path": None,
    "train.recalibrate": None,
    "train.recalibrate_until": None,
    "model.hidden": None,
    "model.bias": True,
    "model.own_branches": False,
    "method.widen_depthwise": 1,
    "method.form": "batchnorm",
    "method.start": "drawn",
}
"""Settings that were added later, with the value that keeps the earlier behaviour.

With this value a setting is left out of the question, so the fingerprint stays what it was."""


def values_of(config: Config, names: Iterable[str]) -> Values:
    """Return the named sections as plain values, as they enter a question; see `without_added`."""
    return without_added(config.model_dump(mode="json", include=set(names)))


def without_added(values: Values, prefix: str = "") -> Values:
    """Return the settings below a dotted prefix, except those with the value given in `ADDED`."""
    kept = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key in ADDED and value == ADDED[key]:
            continue
        kept[name] = without_added(value, f"{key}.") if isinstance(value, dict) else value
    return kept


def completed(values: Values) -> Values:
    """Return frozen settings, completed by those of `ADDED` that did not exist at that time."""
    whole = copy.deepcopy(values)
    for key, usual in ADDED.items():
        *path, name = key.split(".")
        try:
            known: Any = sections({path[0]: values[path[0]]})
        except (KeyError, ValidationError):
            continue  # a section that no longer exists
        there = whole
        for part in path:
            known, there = getattr(known, part), there[part]
        if name in type(known).model_fields:
            there.setdefault(name, usual)
    return whole


def sections(values: Values) -> Config:
    """Return a `Config` with only the given sections, each checked.

    Reading any other section raises AttributeError, so a stage cannot use what it did not declare.
    """
    parts = {name: _adapter(name).validate_python(value) for name, value in values.items()}
    return Config.model_construct(None, **parts)


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    field = Config.model_fields[name]
    kind: Any = field.annotation
    return TypeAdapter(Annotated[kind, field] if field.discriminator else kind)


def tags() -> set[str]:
    """Return the values that select the schema of a section, e.g. those of `model.family`."""
    return {
        tag
        for section in Config.model_fields.values()
        if isinstance(section.discriminator, str)
        for kind in get_args(section.annotation)
        for tag in get_args(kind.model_fields[section.discriminator].annotation)
    }


def flatten(tree: Values, prefix: str = "") -> Values:
    """Return nested mappings as one mapping with dotted keys."""
    flat: Values = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flat
