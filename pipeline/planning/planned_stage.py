"""Define a stage of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.contract.stage import Stage
from pipeline.records.schemas import Question

State = Literal["done", "unfinished", "new"]


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """One stage of a plan: its question, its directory, its state, and whether it was requested.

    `unusable` is the reason why an existing result must not be used; empty if it may be used.
    """

    stage: Stage
    question: Question
    dir: Path
    state: State
    wanted: bool
    why: str
    unusable: str = ""

    @property
    def fingerprint(self) -> str:
        """The hash of the stage's question."""
        return self.question.fingerprint

    @property
    def runs(self) -> bool:
        """Whether a launch executes this stage."""
        return self.wanted and (self.state != "done" or bool(self.unusable))

    @property
    def repeats(self) -> bool:
        """Whether a launch sets an existing result aside and begins the stage again."""
        return self.wanted and bool(self.unusable)

    @property
    def action(self) -> str:
        """The action of a launch: run, continue, repeat, skip (finished), leave (not requested)."""
        if not self.wanted:
            return "leave"
        if self.repeats:
            return "repeat"
        return {"done": "skip", "unfinished": "continue", "new": "run"}[self.state]
