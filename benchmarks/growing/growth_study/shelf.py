"""Keep the results in a folder: finished runs and prices, a line each, and claims of workers."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import evidence
from benchmarks.growth_study.arms import ARMS

# Raise this number when the study or the library changes so that rows can no longer be compared.
# Older rows stay in the file, with their commit, but no longer count.
PROTOCOL = 1


@dataclass(frozen=True)
class Run:
    """One training of the study."""

    network: str
    arm: str
    rate: float
    seed: int


class Shelf:
    """Keeps rows in a folder that several workers may share on one machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs, self.prices = folder / "runs.jsonl", folder / "prices.jsonl"

    def rows(self) -> dict[Run, dict[str, Any]]:
        """Return the finished runs of the present protocol and of arms that still exist."""
        made = [row for row in _read(self.runs) if row["run"]["arm"] in ARMS]
        return {Run(**row["run"]): row for row in made}

    def add(self, run: Run, result: dict[str, Any]) -> None:
        """Append a finished run."""
        _append(self.runs, {"run": asdict(run), **result, **_origin()})

    def price(self, form: str) -> dict[str, float] | None:
        """Return the price of a form; None if the folder has none."""
        found = [row["price"] for row in _read(self.prices) if row["form"] == form]
        return found[0] if found else None

    def add_price(self, form: str, price: dict[str, float]) -> None:
        """Append a price."""
        _append(self.prices, {"form": form, "price": price, **_origin()})

    @contextmanager
    def claim(self, run: Run) -> Iterator[bool]:
        """Claim a run; yield False if another worker has it. The claim ends with the worker."""
        claims = self.folder / ".claims"
        claims.mkdir(parents=True, exist_ok=True)
        file = claims / f"{run.network}-{run.arm}-{run.rate:g}-{run.seed}"
        with file.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            try:
                yield run not in self.rows()  # it may have ended meanwhile
            finally:
                file.unlink(missing_ok=True)


def _read(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, without a last line that was cut off."""
    if not file.exists():
        return []
    whole = file.read_text().rpartition("\n")[0]
    rows = [json.loads(line) for line in whole.splitlines() if line]
    return [row for row in rows if row["protocol"] == PROTOCOL]


def _append(file: Path, row: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)  # remove a cut-off line
        stream.write(json.dumps(row).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _origin() -> dict[str, Any]:
    """Return how a row was made: protocol, date, commit, machine, threads, versions, command."""
    more = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    return {"protocol": PROTOCOL, **evidence.made(), **more}
