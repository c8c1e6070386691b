"""What the small files of runs and stages must hold to be believed, by their names.

Only what other code relies on is listed, and nothing is converted: a file may hold more, and one of
an older version less.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.config.base import StageName

Count = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Facts = dict[str, Any]


class Record(BaseModel):
    """A file, or a row of one."""

    model_config = ConfigDict(extra="allow", strict=True)


class Output(Record):
    """A file that a stage promised."""

    path: str
    bytes: Count
    sha256: str


class Result(Record):
    """The answer of a stage; numbers of older versions may be nan."""

    metrics: dict[str, float | bool]
    seconds: Finite
    parents: dict[str, str] = {}
    outputs: dict[str, Output] = {}
    environment: Facts = {}


class Question(Record):
    """What a stage directory answers."""

    stage: StageName
    config: Facts
    parents: dict[str, str]
    fingerprint: str
    again: dict[str, Count] = {}


class Processes(Record):
    """Where a stage runs, as far as the supervisor of its processes looks."""

    processes_per_node: Count


class Where(Record):
    """How a stage runs here."""

    cluster: Processes
    checkpoint: Facts


class Attempt(Record):
    """Who owns a stage directory."""

    attempt: Count
    pid: Count = 0
    host: str = ""
    born: Count | None = None
    job: str | None = None


class Progress(Record):
    """How far a stage is."""

    done: Count
    total: Count
    text: str
    time: Finite


class Run(Record):
    """What is known of a run."""

    choices: Facts
    group: str | None = None
    command: str = ""
    source: Facts = {}
    versions: Facts = {}
    wandb: Facts = {}
    job_ids: list[Facts] = []


class Images(Record):
    """The settings of the data."""

    root: str | None = None


class Frozen(Record):
    """The settings of a run, of whatever version."""

    seed: Count
    data: Images


class Event(Record):
    """What happened to a stage."""

    event: str
    time: Finite
    attempt: Count = 0
    message: str = ""
    why: str = ""
    kind: str = ""
    gpus: Finite = 0.0
    step: Count = 0


class Submission(Record):
    """A job or a process that was started for a stage."""

    event: str = ""
    id: str = ""
    token: str = ""
    index: Count = 0
    run: str = ""
    runs: list[str] = []


class Point(Record):
    """A step or an epoch of a training."""

    kind: str
    step: Count
    epoch: Count
    loss: float | None = None


class Change(Record):
    """What was grown, cut or looked at."""

    step: Count
    epoch: Count
    action: str
    layer: str
    branches: list[str] | None = None
    saliency: list[list[Any]] | None = None


SHAPES: dict[str, type[Record]] = {
    "result.json": Result, "stage.yaml": Question, "where.yaml": Where, "attempt": Attempt,
    "progress.json": Progress, "run.json": Run, "config.yaml": Frozen, "events.jsonl": Event,
    "jobs.jsonl": Submission, "history.jsonl": Point, "growth.jsonl": Change,
    "manifest.json": Record, "fusion.json": Record, "eval.json": Record, "latency.json": Record,
}  # fmt: skip


@cache
def _validate(name: str) -> Any:
    return SHAPES[name].__pydantic_validator__.validate_python


def check(name: str, value: Any) -> None:
    """Make sure that `value` can be what a file of this name holds.

    Raises:
        ValueError: names what it cannot be.
    """
    if name not in SHAPES:
        return
    try:
        _validate(name)(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{key}: {first['msg']}" if key else _kind(value)) from None


def _kind(value: Any) -> str:
    return f"{'null' if value is None else f'a {type(value).__name__}'} and no mapping"
