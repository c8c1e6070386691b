"""A file of measured numbers, with what is needed to judge and to repeat them."""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.records import environment, outfile, rundir
from pipeline.records.provenance import source_revision, versions

SOURCE = source_revision()  # as the process begins: others may commit while it measures


def write(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON; `made` says when, from which source, where and how it was made."""
    outfile.write(path, rundir.to_json({"made": made(), **report}, indent=1) + "\n")


def made() -> dict[str, Any]:
    """Return date, commit, machine, versions and command of what this process measures."""
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
    """Return the command that was given, ready to paste."""
    spec = sys.modules["__main__"].__spec__
    called = ["-m", spec.name.removesuffix(".__main__")] if spec else [sys.argv[0]]
    return shlex.join(["python", *called, *sys.argv[1:]])
