"""Write files of measured numbers, with the facts that are needed to judge and repeat them."""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.records import environment, outfile, rundir
from pipeline.records.provenance import source_revision, versions

SOURCE = source_revision()  # read at the start, because others may commit during a measurement


def write(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON, with its time, source, machine and command under the key `made`."""
    outfile.write(path, rundir.to_json({"made": made(), **report}, indent=1) + "\n")


def made() -> dict[str, Any]:
    """Return date, commit, machine, versions and command of this process's measurement."""
    device = f"{environment.device()}, {environment.cores()} cores, {platform.platform()}"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": SOURCE["revision"],
        "dirty": SOURCE["dirty"],
        "machine": device,
        "versions": versions(),
        "command": command(),
    }


def command() -> str:
    """Return the command line of this process, ready to paste."""
    spec = sys.modules["__main__"].__spec__
    called = ["-m", spec.name.removesuffix(".__main__")] if spec else [sys.argv[0]]
    return shlex.join(["python", *called, *sys.argv[1:]])
