"""Settings of the place where stages run: on this machine or on a SLURM cluster."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipeline.config.base import PARALLEL, STAGE_NAMES, Section, StageName, Whole
from slurm.notation import minutes as duration

GPUS = re.compile(r"[A-Za-z][\w.-]*(:\d+)?")  # TYPE or TYPE:NUMBER
G = TypeVar("G", bound="Given | Slurm")


class Local(Section):
    """Stages run one after the other on this machine."""

    name: Literal["local"]
    nodes: Annotated[Literal[1], Whole]
    processes_per_node: PositiveInt
    hang_timeout: PositiveInt

    def given(self, stage: str, what: str) -> Any:
        """Return a resource of a stage."""
        return getattr(self, what)

    def processes(self, stage: str) -> int:
        """Return the number of processes per node of a stage."""
        return self.processes_per_node if stage in PARALLEL else 1


class Given(Section):
    """Resources of a single stage on a cluster; null: those of all stages."""

    nodes: PositiveInt | None
    processes_per_node: PositiveInt | None
    gpus_per_node: NonNegativeInt | None
    gpus: str | None = None
    cpus_per_process: PositiveInt | None
    memory: PositiveFloat | None
    time_limit: int | str | None
    partition: str | None
    qos: str | None
    constraint: str | None
    exclusive: bool | None

    _duration = field_validator("time_limit")(lambda value: _minutes(value))
    _gpus = field_validator("gpus")(lambda value: _typed(value))
    _number = model_validator(mode="after")(lambda given: _one_number(given))


class Slurm(Section):
    """Each stage is a SLURM job; see `conf/cluster/slurm.yaml`."""

    name: Literal["slurm"]
    nodes: PositiveInt
    processes_per_node: PositiveInt
    gpus_per_node: NonNegativeInt | None
    gpus: str | None = None
    cpus_per_process: PositiveInt
    memory: PositiveFloat | None
    time_limit: int | str
    signal_seconds: Annotated[int, Field(ge=10)]
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    exclusive: bool
    comment: str | None = None
    retries: NonNegativeInt
    max_parallel: PositiveInt
    sbatch: dict[str, str | int | bool]
    srun: list[str]
    setup: list[str]
    resources: dict[StageName, Given]
    hang_timeout: PositiveInt

    _duration = field_validator("time_limit")(lambda value: _minutes(value))
    _gpus = field_validator("gpus")(lambda value: _typed(value))
    _number = model_validator(mode="after")(lambda given: _one_number(given))

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
        """Return a resource of a stage: from `resources`, or else the general setting.

        Stages other than train get one node unless `resources` sets more.
        """
        value = getattr(self.resources[stage], what, None)  # type: ignore[index]
        if value is not None:
            return value
        if what == "nodes" and stage != "train":
            return 1
        if what == "exclusive" and stage == "latency":
            return True  # other jobs on the node would disturb the times
        return getattr(self, what)

    def processes(self, stage: str) -> int:
        """Return the number of processes per node of a stage."""
        return self.given(stage, "processes_per_node") if stage in PARALLEL else 1

    def gpu_type(self, stage: str) -> str | None:
        """Return the type of GPU of a stage; None: any."""
        return (self.given(stage, "gpus") or "").partition(":")[0] or None

    def gpus_of(self, stage: str) -> int | None:
        """Return the number of GPUs per node of a stage; None: one per process."""
        own: int | None = self.resources[stage].gpus_per_node  # type: ignore[index]
        number = (self.given(stage, "gpus") or "").partition(":")[2]
        return int(number) if number and own is None else self.given(stage, "gpus_per_node")


def _minutes(value: int | str | None) -> int | None:
    """Convert a time limit (minutes, or a text in SLURM's notation) to minutes."""
    if isinstance(value, str):
        value = math.ceil(duration(value) or 0)
    if value is not None and value < 1:
        raise ValueError("is not a time limit; use minutes, HH:MM:SS or D-HH:MM:SS")
    return value


def _typed(value: str | None) -> str | None:
    """Check that a text has the form TYPE or TYPE:NUMBER."""
    if value is not None and not GPUS.fullmatch(value):
        raise ValueError(f"'{value}' is not a type of GPU; use TYPE or TYPE:NUMBER, e.g. a100:2")
    return value


def _one_number(given: G) -> G:
    """Refuse a number of GPUs that is given twice."""
    if given.gpus_per_node is not None and ":" in (given.gpus or ""):
        raise ValueError(
            f"gpus_per_node={given.gpus_per_node} and gpus={given.gpus} are two numbers of GPUs; "
            "leave one out"
        )
    return given


Cluster = Annotated[Local | Slurm, Field(discriminator="name")]
