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
    """One stage of a plan: its directory, whether it was asked for, and what is known of it.

    `anew` tells why what is there of it is not to be used, if so.
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
        """Whether launching keeps aside what is there and begins anew."""
        return self.wanted and bool(self.anew)

    @property
    def action(self) -> str:
        """What launching does: run, continue, repeat, skip (finished), or leave (not asked for)."""
        if not self.wanted:
            return "leave"
        if self.repeats:
            return "repeat"
        return {"done": "skip", "unfinished": "continue", "new": "run"}[self.state]
