"""One stage of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.contract.stage import Stage
from pipeline.records.schemas import Question

State = Literal["done", "unfinished", "new"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of a plan: its question, its directory, its state, and whether it is wanted.

    `anew` says why an existing result must not be used; empty if it may.
    """

    stage: Stage
    question: Question
    dir: Path
    state: State
    wanted: bool
    why: str
    anew: str = ""

    @property
    def fingerprint(self) -> str:
        """The hash of its question."""
        return self.question.fingerprint

    @property
    def runs(self) -> bool:
        """Whether launching executes this stage."""
        return self.wanted and (self.state != "done" or bool(self.anew))

    @property
    def repeats(self) -> bool:
        """Whether launching keeps an existing result aside and begins anew."""
        return self.wanted and bool(self.anew)

    @property
    def action(self) -> str:
        """What launching does: run, continue, repeat, skip (finished), or leave (not wanted)."""
        if not self.wanted:
            return "leave"
        if self.repeats:
            return "repeat"
        return {"done": "skip", "unfinished": "continue", "new": "run"}[self.state]
