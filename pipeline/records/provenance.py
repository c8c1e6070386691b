"""The provenance of a result: command, source revision and package versions."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TypedDict

from pipeline.display.masking import mask

PROJECT = Path(__file__).resolve().parents[2]  # a checkout, or site-packages
DALI = "nvidia-dali-cuda130"
PACKAGES = ("torch", "torchvision", "timm", DALI, "hydra-core", "wandb")


def command_line() -> str:
    """Return the command that made this run, ready to paste; secrets are masked."""
    return shlex.join(["python", "-m", "pipeline.launch", *map(mask, sys.argv[1:])])


@cache
def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of packages, by default those that decide results."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def version() -> str:
    """Return the version of this project."""
    return (PROJECT / "dyrep" / "VERSION").read_text().strip()


class GitState(TypedDict):
    """The git revision of some code, and whether there are uncommitted changes."""

    revision: str | None
    dirty: bool


class Source(GitState):
    """The version of this project, and the state of its code."""

    version: str


@cache
def source_revision() -> Source:
    """Return the version and revision of the running code.

    The revision is None for code that git does not track: code from a wheel may lie inside the
    checkout of another project, whose revision would be wrong.
    """
    return {"version": version(), **git_state(Path(__file__).resolve())}


def git_state(file: Path) -> GitState:
    """Return the git revision of a file's repository and whether there are uncommitted changes."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(file.parent), *arguments],
                capture_output=True, text=True, timeout=10,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    tracked = git("ls-files", "--error-unmatch", file.name) is not None
    return {
        "revision": git("rev-parse", "HEAD") if tracked else None,
        "dirty": tracked and bool(git("status", "--porcelain")),
    }
