"""Define the schemas of the small files of runs and stages, by file name.

A schema lists only the fields that other code relies on, and converts nothing: a file may have more
fields, and a file of an older version fewer.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.config.base import StageName

Count = Annotated[int, Field(ge=0, lt=2**63)]
Whole = Annotated[int, Field(gt=-(2**63), lt=2**63)]  # a float can be as large
Finite = Annotated[float, Field(gt=-1e12, lt=1e12)]  # seconds; sums of them are finite, too
Moment = Annotated[float, Field(gt=-6e10, lt=2.5e11)]  # seconds since 1970, of the years 68 to 9892
Facts = dict[str, Any]


class Record(BaseModel):
    """The content of a file, or a row of it; fields that the schema does not list are kept."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    FILE: ClassVar[str]

    def values(self) -> dict[str, object]:
        """Return the fields that were set; these are written to the file."""
        return self.model_dump(exclude_unset=True)


class Output(Record):
    """An output file of a stage."""

    path: str
    bytes: Count
    sha256: str


class Result(Record):
    """The result of a stage; metrics of older versions may be nan."""

    FILE = "result.json"

    stage: str = ""
    fingerprint: str = ""
    parents: dict[str, str] = {}
    attempts: Count = 0
    seconds: Finite
    metrics: dict[str, Whole | float | bool]
    outputs: dict[str, Output] = {}
    environment: Facts = {}

    def numbers(self) -> dict[str, int | float | bool]:
        """Return the metrics, with the validation loss of train as `val_loss` alone.

        The file has it as `loss`, too, its only name in older versions. In a history, `loss` is
        training loss.
        """
        found = dict(self.metrics)
        if "loss" in found:
            found.setdefault("val_loss", found.pop("loss"))
        return found


class Question(Record):
    """The question of a stage directory: everything that decides its result."""

    FILE = "stage.yaml"

    stage: StageName
    version: Count = 1
    config: Facts
    parents: dict[str, str]
    fingerprint: str
    again: dict[str, Count] = {}


class Processes(Record):
    """The settings of the processes of a stage, as far as their parent reads them."""

    processes_per_node: Count


class Where(Record):
    """The settings of the newest launch for running a stage."""

    FILE = "where.yaml"

    cluster: Processes
    checkpoint: Facts


class Attempt(Record):
    """The owner of a stage directory."""

    FILE = "attempt"

    attempt: Count
    pid: Count = 0
    host: str = ""
    time: Moment = 0.0
    born: Count | None = None
    job: str | None = None


class Progress(Record):
    """The progress of a stage."""

    FILE = "progress.json"

    done: Count
    total: Count
    text: str
    time: Moment
    saved: Count = 0
    eta: Finite | None = None


class Run(Record):
    """The facts about a run that are not its configuration: when, how and from what code."""

    FILE = "run.json"

    name: str = ""
    group: str | None = None
    command: str = ""
    choices: Facts
    created: str = ""
    source: Facts = {}
    custom: Facts = {}
    versions: Facts = {}
    wandb: Facts = {}
    job_ids: list[Facts] = []


class Images(Record):
    """The settings of the data."""

    root: str | None = None


class Frozen(Record):
    """The settings of a run, of any version."""

    FILE = "config.yaml"

    seed: Count
    data: Images


class Event(Record):
    """An event in the life of a stage."""

    FILE = "events.jsonl"

    time: Moment
    event: str
    attempt: Count = 0
    message: str = ""
    why: str = ""
    kind: str = ""
    gpus: Finite = 0.0
    step: Count = 0
    file: str = ""
    job: str = ""
    nodes: list[str] = []
    node: Count = 0
    signal: str = ""
    code: int = 0
    saved: Count = 0
    last_progress: Moment = 0.0


class Submission(Record):
    """A job that was submitted, or a process that was started, for a stage."""

    FILE = "jobs.jsonl"

    time: Moment = 0.0
    event: str = ""
    executor: str = ""
    pid: Count = 0
    id: str = ""
    token: str = ""
    index: Count = 0
    run: str = ""
    runs: list[str] = []


class Point(Record):
    """A step or an epoch of a training."""

    FILE = "history.jsonl"

    kind: str
    step: Count
    epoch: Count
    loss: float | None = None


class Change(Record):
    """A layer that grew, was cut, or was ranked."""

    FILE = "growth.jsonl"

    step: Count
    epoch: Count
    action: str
    layer: str
    branches: list[str] | None = None
    saliency: list[list[Any]] | None = None


KINDS = (
    Result, Question, Where, Attempt, Progress, Run, Frozen, Event, Submission, Point, Change,
)  # fmt: skip
MAPPINGS = ("manifest.json", "fusion.json", "eval.json", "latency.json")
SHAPES: dict[str, type[Record]] = {kind.FILE: kind for kind in KINDS} | dict.fromkeys(
    MAPPINGS, Record
)


@cache
def _validate(name: str) -> Any:
    return SHAPES[name].__pydantic_validator__.validate_python


def record(name: str, value: Any) -> Record | None:
    """Return `value` as a record of the file with this name; None if the file has no schema.

    Raises:
        ValueError: the value does not fit; the message names the field.
    """
    if name not in SHAPES:
        return None
    try:
        return _validate(name)(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{key}: {first['msg']}" if key else _kind(value)) from None


def _kind(value: Any) -> str:
    return f"{'null' if value is None else f'a {type(value).__name__}'} and no mapping"
