"""The schema of `conf/`: one class per section, one field per key, checked once when composed.

Hydra composes the tree; these classes refuse what the tree cannot mean. The word of a folder in
`conf/`, of a section and of a class is the same.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    field_validator,
    model_validator,
)

from slurm.scheduler import minutes as duration

STAGE_NAMES = ("prep", "train", "fuse", "eval", "latency")
StageName = Literal["prep", "train", "fuse", "eval", "latency"]
Branch = Literal["kxk", "1x1", "1x1_kxk", "1x1_avg", "1xk", "kx1", "identity"]
PARALLEL = ("train", "eval")  # stages that run in several processes
Share = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of the configuration: no unknown keys, no silent conversions, no changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Stages(Section):
    """Which stages this launch is about."""

    run: list[StageName] = Field(min_length=1)


class Data(Section):
    """The images and the split; the same for every stage."""

    name: Literal["digits"]
    root: str | None
    image_size: PositiveInt
    val_fraction: Share
    split_seed: NonNegativeInt
    loader: Literal["dali"]


class Vgg(Section):
    """A VGG-style network with batch norm."""

    name: str
    family: Literal["vgg"]
    widths: list[list[PositiveInt]] = Field(min_length=1)


class MobileNetV1(Section):
    """MobileNet of 2017, whose convolutions are depthwise and 1x1."""

    name: str
    family: Literal["mobilenet_v1"]
    width: PositiveFloat
    small_stem: bool


class Torchvision(Section):
    """A classifier of torchvision, by its name there; `models.build` knows which there are."""

    name: str
    family: Literal["torchvision"]
    small_stem: bool

    @model_validator(mode="after")
    def _stem_can_be_small(self) -> Self:
        if self.small_stem and not re.match(r"(wide_)?res(net|next)", self.name):
            raise ValueError(
                f"small_stem is for ResNets and {self.name} is none; set model.small_stem=false"
            )
        return self


class Timm(Section):
    """A classifier of timm, by its name there; `models.build` knows which there are."""

    name: str
    family: Literal["timm"]


Model = Annotated[Vgg | MobileNetV1 | Torchvision | Timm, Field(discriminator="family")]


class Plain(Section):
    """No extra branches."""

    name: str
    kind: Literal["plain"]


class Static(Section):
    """The same branches on every convolution from the first step."""

    name: str
    kind: Literal["static"]
    branches: list[Branch] = Field(min_length=1)
    absorb: bool


class DyRep(Section):
    """Branches grown and cut while training; see `dyrep.DyRep`."""

    name: str
    kind: Literal["dyrep"]
    adjust_interval: PositiveInt
    last_adjust_epoch: NonNegativeInt
    saliency: Literal["gain", "gain_per_flop", "snip", "grad_norm", "synflow", "random"]
    max_cost: Annotated[float, Field(ge=1)] | None
    cost: Literal["flops", "seconds"]
    branches: list[Branch] = Field(min_length=1)
    grow: PositiveInt
    cut_std: NonNegativeFloat
    cut_ratio: NonNegativeFloat
    calibration_batches: PositiveInt


Method = Annotated[Plain | Static | DyRep, Field(discriminator="kind")]


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


class Prep(Section):
    """How prepared data is laid out."""

    shard_images: PositiveInt


class Fuse(Section):
    """When a fused network is accepted."""

    tolerance: PositiveFloat
    images: PositiveInt


class Eval(Section):
    """How the evaluation is run."""

    batch_size: PositiveInt


class Latency(Section):
    """What is timed."""

    batch_sizes: list[PositiveInt] = Field(min_length=1)
    repeats: Annotated[int, Field(ge=10)]
    threads: PositiveInt | None


class Local(Section):
    """Stages run one after the other on this machine."""

    name: Literal["local"]
    nodes: Literal[1]
    processes_per_node: PositiveInt
    hang_timeout: PositiveInt

    def given(self, stage: str, what: str) -> Any:
        """Return a resource of a stage."""
        return getattr(self, what)

    def processes(self, stage: str) -> int:
        """Return on how many processes per node a stage runs."""
        return self.processes_per_node if stage in PARALLEL else 1


class Given(Section):
    """What one stage is given on a cluster where it differs from what all are given."""

    nodes: PositiveInt | None
    processes_per_node: PositiveInt | None
    gpus_per_node: NonNegativeInt | None
    cpus_per_process: PositiveInt | None
    memory: PositiveFloat | None
    time_limit: int | str | None
    partition: str | None
    qos: str | None
    constraint: str | None
    exclusive: bool | None

    _duration = field_validator("time_limit")(lambda value: _minutes(value))


class Slurm(Section):
    """Each stage is a job; see `conf/cluster/slurm.yaml`."""

    name: Literal["slurm"]
    nodes: PositiveInt
    processes_per_node: PositiveInt
    gpus_per_node: NonNegativeInt | None
    cpus_per_process: PositiveInt
    memory: PositiveFloat | None
    time_limit: int | str
    signal_seconds: Annotated[int, Field(ge=10)]
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    exclusive: bool
    retries: NonNegativeInt
    max_parallel: PositiveInt
    sbatch: dict[str, str | int | bool]
    srun: list[str]
    setup: list[str]
    resources: dict[StageName, Given]
    hang_timeout: PositiveInt

    _duration = field_validator("time_limit")(lambda value: _minutes(value))

    @model_validator(mode="after")
    def _in_time(self) -> Self:
        for stage in STAGE_NAMES:
            limit = self.given(stage, "time_limit")
            if 60 * limit < 2 * self.signal_seconds + 60:
                raise ValueError(
                    f"time_limit={limit} minutes of {stage} leaves no time to work before the "
                    f"signal {self.signal_seconds} s ahead of it; use at least "
                    f"{-(-(2 * self.signal_seconds + 60) // 60)} minutes, or a smaller "
                    "cluster.signal_seconds"
                )
        return self

    def given(self, stage: str, what: str) -> Any:
        """Return a resource of a stage: its own, or what train is given, or one of it."""
        value = getattr(self.resources[stage], what, None)  # type: ignore[index]
        if value is not None:
            return value
        if what == "nodes" and stage != "train":
            return 1
        if what == "exclusive" and stage == "latency":
            return True  # neighbours would be timed, too
        return getattr(self, what)

    def processes(self, stage: str) -> int:
        """Return on how many processes per node a stage runs."""
        return self.given(stage, "processes_per_node") if stage in PARALLEL else 1


def _minutes(value: int | str | None) -> int | None:
    """Return a time limit, in minutes or in SLURM's notation, in minutes."""
    if isinstance(value, str):
        value = math.ceil(duration(value) or 0)
    if value is not None and value < 1:
        raise ValueError("is no time limit; use minutes, HH:MM:SS or D-HH:MM:SS")
    return value


Cluster = Annotated[Local | Slurm, Field(discriminator="name")]


class Disabled(Section):
    """Nothing is tracked outside the run directory."""

    mode: Literal["disabled"]


class Wandb(Section):
    """Where the Weights & Biases run goes."""

    mode: Literal["offline", "online"]
    project: str
    entity: str | None


Tracking = Annotated[Disabled | Wandb, Field(discriminator="mode")]


class Config(Section):
    """Everything a launch means: what is studied, how, where, and who watches."""

    stage: Stages
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

    @field_validator("name", "group")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,127}", value):
            raise ValueError(
                f"'{value}' cannot be a directory name; use letters, digits and . _ - + = "
                "(no slashes, no blanks, at most 128 characters)"
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
        if self.model.family == "vgg" and self.data.image_size < 2 ** len(self.model.widths):
            raise ValueError(
                f"data.image_size={self.data.image_size} vanishes in the {len(self.model.widths)} "
                f"poolings of model={self.model.name}; use at least {2 ** len(self.model.widths)}"
            )
        return self


WHERE = ("cluster", "checkpoint", "tracking", "stage", "root", "dry_run", "wait", "name", "group")
"""Keys that say where, how safely and who watches: they decide no result, enter no fingerprint."""


def sections(values: dict[str, Any]) -> Config:
    """Return a `Config` that holds only the given sections, each checked.

    A stage is handed no others: reading a section it did not declare is an AttributeError.
    """
    parts = {}
    for name, value in values.items():
        field = Config.model_fields[name]
        kind: Any = field.annotation
        annotation: Any = Annotated[kind, field] if field.discriminator else kind
        parts[name] = TypeAdapter(annotation).validate_python(value)
    return Config.model_construct(None, **parts)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, keyed by dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flat
