"""Hold the request to a section, and write the JSON file of its results.

This module imports the standard library alone where possible, because the process that starts the
sections must not fail with them.
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

# seconds: a section is not begun with less than the first left, and is ended after the second
SECTIONS = {
    "steps": (60, 360),
    "grown": (40, 150),
    "costs": (30, 150),
    "resume": (60, 180),
    "whole": (60, 240),
    "inference": (30, 150),
    "checks": (30, 300),
}

PACKAGES = (  # packages that affect speed, beside those that every result of a stage lists
    "numpy", "nvidia-cudnn-cu13", "triton", "pydantic", "omegaconf", "safetensors", "submitit",
    "scipy",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """The request to the campaign, with its deadline (seconds since the epoch)."""

    out: Path
    until: float
    small: bool
    data: Path
    reference: Path | None
    commit: str | None

    def left(self) -> float:
        """The remaining seconds."""
        return self.until - time.time()


class Report:
    """`OUT/SECTION.json`, which is rewritten with every addition."""

    def __init__(self, request: Request, section: str) -> None:
        self._path, self._request = request.out / f"{section}.json", request
        self.facts: dict[str, Any] = {
            "section": section,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "small": request.small,
            "results": {},
            "just_after": {},
            "skipped": {},
        }

    def add(self, name: str, found: Any) -> None:
        """Record and print a result, with the state of the card at this moment."""
        self.facts["results"][name] = found
        self.facts["just_after"][name] = card.now()
        self._write()
        print(f"{name}: {json.dumps(found)}", flush=True)

    def skip(self, name: str, reason: str) -> None:
        """Record a measurement that was not made, and the reason."""
        self.facts["skipped"][name] = reason
        self._write()
        print(f"{name} skipped: {reason}", flush=True)

    def skip_of(self, result: str, part: str, reason: str) -> None:
        """Record that a part of a result was not measured."""
        self.skip(f"{result}: {part}", reason)

    def fits(self, name: str, seconds: float) -> bool:
        """Whether so many seconds are left; if not, record that `name` was skipped."""
        if self._request.small or self._request.left() >= seconds:
            return True
        self.skip(name, f"it takes {seconds:.0f} s or more, {self._request.left():.0f} s were left")
        return False

    def fail(self, error: str, printed: str = "") -> None:
        """Record the error that ended the section early."""
        self.facts |= {"error": error, **({"printed": printed} if printed else {})}
        self._write()

    @contextmanager
    def watched(self) -> Iterator[Report]:
        """Record the machine, and the samples of its card over the body of the `with`."""
        import torch

        from pipeline.records import environment, provenance
        from pipeline.stages.timing import machine

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        source = provenance.source_revision()
        self.facts["commit"] = self._request.commit or source["revision"]
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
    """Return the report of a section; None if it wrote none."""
    try:
        return json.loads((out / f"{section}.json").read_text())
    except (OSError, ValueError):
        return None
