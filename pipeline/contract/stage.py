"""Define the contract between a stage and everything around it.

A stage reads its own directory and its parents', writes only its own, may be killed at any instant
and started again, and returns only when it is done. `pipeline.execution.work`, not the stage,
checks that every promised output exists and writes `result.json`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.display.errors import REFUSALS, Interrupted
from pipeline.records import attempt, rundir, store
from pipeline.records.schemas import Event, Progress

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.config.base import StageName

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the table in `pipeline.contract.table`.

    `reads` are the sections of the configuration that decide the result, except the keys in
    `ignores`; `outputs` are glob patterns below the stage directory, each of which must match;
    `processes`: whether the stage runs in several processes; `version` is raised by hand when
    results of older code are wrong.
    """

    name: StageName
    does: str
    parents: tuple[StageName, ...] = ()
    reads: tuple[str, ...]
    ignores: tuple[str, ...] = ()
    outputs: tuple[str, ...]
    processes: bool = False
    version: int = 1


@dataclass(kw_only=True)
class Context:
    """The arguments of a stage body: settings, directory, parents, and ways to report."""

    stage: Stage
    dir: Path
    root: Path
    fingerprint: str
    config: Config
    parents: dict[str, Path]
    attempt: int
    repeat: int = 0  # number of earlier repeats; see pipeline.records.repeats
    stopping: Any = field(default=lambda: False)
    started: float = field(default_factory=time.time)
    saved: int = 0  # the step from which a restart would continue; see slurm.job
    _reported: float = 0.0
    _text: str = ""

    def event(self, name: str, **facts: Any) -> None:
        """Append an event to `events.jsonl` (rank 0 only)."""
        row = Event(time=time.time(), event=name, attempt=self.attempt, **facts)
        store.note(row, self.dir)

    def check_owner(self) -> None:
        """Check that no newer attempt owns the directory; see `attempt.check_owner`."""
        attempt.check_owner(self.dir, self.attempt)

    def progress(self, done: int, total: int, text: str = "", eta: float | None = None) -> None:
        """Report progress (rank 0 only).

        Progress is written at most five times a second, and whenever the text changes.

        Args:
            done: steps done.
            total: steps in all; 0 if steps differ so much that their pace says nothing.
            text: what the stage does now.
            eta: remaining seconds, if the stage knows more than its average pace.
        """
        now = time.monotonic()
        if done < total and now - self._reported < 0.2 and text == self._text:
            return
        self._reported, self._text = now, text
        more = {} if eta is None else {"eta": round(eta, 1)}
        row = Progress(
            done=done, total=total, text=text, time=time.time(), saved=self.saved, **more
        )
        temporary = self.dir / f".{rundir.PROGRESS}.{self.attempt}"
        try:
            # no fsync: only commands that show progress read it
            temporary.write_text(rundir.to_json(row.values()), encoding="utf-8")
            temporary.replace(self.dir / rundir.PROGRESS)
        except OSError as error:
            if error.errno not in REFUSALS:  # a full disk may have room again when it matters
                raise
            with suppress(OSError):
                temporary.unlink()

    def stop_requested(self) -> bool:
        """Whether a signal requested a stop."""
        return bool(self.stopping())

    def check_stop(self) -> None:
        """Raise `Interrupted` if a signal requested a stop; for stages with nothing to save."""
        if self.stop_requested():
            raise Interrupted

    def track(self, items: Iterable[T], total: int, text: str = "") -> Iterator[T]:
        """Yield `items` while reporting progress and honouring a stop request."""
        for done, item in enumerate(items):
            self.check_stop()
            self.progress(done, total, text)
            yield item
        self.progress(total, total, text)
