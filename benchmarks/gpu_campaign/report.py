"""What a section was asked, and the JSON file of what it found.

Standard library alone where it can be: who starts the sections must not fail with them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu_campaign import card
from pipeline.records import disk

# seconds: a section is not begun with less than the first, and ended after the second
SECTIONS = {
    "steps": (60, 360),
    "grown": (40, 150),
    "costs": (30, 150),
    "resume": (60, 180),
    "whole": (60, 240),
    "inference": (30, 150),
    "checks": (30, 300),
}

PACKAGES = (  # that decide speed, beside those that every result of a stage names
    "numpy", "nvidia-cudnn-cu13", "triton", "pydantic", "omegaconf", "safetensors", "submitit",
    "scipy",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What the campaign is to do, and until when (seconds since the epoch)."""

    out: Path
    until: float
    small: bool
    data: Path
    reference: Path | None
    commit: str | None

    def left(self) -> float:
        """Seconds that are left."""
        return self.until - time.time()


class Report:
    """`OUT/SECTION.json`, written anew whenever something is added to it."""

    def __init__(self, asked: Asked, section: str) -> None:
        self._path, self._asked = asked.out / f"{section}.json", asked
        self.facts: dict[str, Any] = {
            "section": section,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "small": asked.small,
            "results": {},
            "just_after": {},
            "skipped": {},
        }

    def add(self, name: str, found: Any) -> None:
        """Note what was found and what the card is like just then, and say so."""
        self.facts["results"][name] = found
        self.facts["just_after"][name] = card.now()
        self._write()
        print(f"{name}: {json.dumps(found)}", flush=True)

    def skip(self, name: str, reason: str) -> None:
        """Note what was not measured, and why."""
        self.facts["skipped"][name] = reason
        self._write()
        print(f"{name} skipped: {reason}", flush=True)

    def skip_of(self, result: str, part: str, reason: str) -> None:
        """Note that a part of a result was not measured."""
        self.skip(f"{result}: {part}", reason)

    def fits(self, name: str, seconds: float) -> bool:
        """Whether so many seconds are left; notes it if not."""
        if self._asked.small or self._asked.left() >= seconds:
            return True
        self.skip(name, f"it takes {seconds:.0f} s or more, {self._asked.left():.0f} s were left")
        return False

    def fail(self, error: str, printed: str = "") -> None:
        """Note how the section ended before its end."""
        self.facts |= {"error": error, **({"printed": printed} if printed else {})}
        self._write()

    @contextmanager
    def watched(self) -> Iterator[Report]:
        """Note the machine, and what its card did meanwhile."""
        import torch

        from pipeline.records import environment, provenance
        from pipeline.stages.timing import machine

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        source = provenance.source_revision()
        self.facts["commit"] = self._asked.commit or source["revision"]
        self.facts["machine"] = {
            **environment.describe(),
            "packages": provenance.versions(PACKAGES), "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(), "card": card.named(), "set": machine.tuning(),
        }  # fmt: skip
        self.facts["before"] = machine.state(device)
        self._write()
        begun = time.monotonic()
        with card.sampled() as clocks:
            yield self
        self.facts["during"] = clocks
        self.facts["after"] = machine.state(device)
        self.facts["seconds"] = round(time.monotonic() - begun, 1)
        self._write()

    def _write(self) -> None:
        with disk.replacing(self._path) as temporary:
            temporary.write_text(json.dumps(self.facts, indent=1) + "\n")


def read(out: Path, section: str) -> dict[str, Any] | None:
    """Return what a section wrote; None if it wrote nothing."""
    try:
        return json.loads((out / f"{section}.json").read_text())
    except (OSError, ValueError):
        return None
