"""Where stages run."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipeline.config.base import PARALLEL, STAGE_NAMES, Section, StageName
from slurm.scheduler import minutes as duration


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
    comment: str | None = None
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
