"""Record the provenance of a result: command, source revision and package versions."""

from __future__ import annotations

import importlib.metadata
import os
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
    """Return the command line of this process, ready to paste; secrets are masked."""
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
    return (PROJECT / "dyrep" / "VERSION").read_text(encoding="utf-8").strip()


class GitState(TypedDict):
    """The git revision of some code, and whether there are uncommitted changes; None: unknown."""

    revision: str | None
    dirty: bool | None


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
    """Return the git revision of a file's repository and whether there are uncommitted changes.

    Both are None if git does not answer (not installed, another user's repository, a damaged one).
    A file that git does not track has no revision and no changes.
    """
    if not any((above / ".git").exists() for above in file.parents):
        return {"revision": None, "dirty": False}
    listed = _git(file, "ls-files", "--error-unmatch", file.name)
    if listed is None or listed.returncode:
        untracked = listed is not None and listed.returncode == 1
        return {"revision": None, "dirty": False if untracked else None}
    head, changes = _git(file, "rev-parse", "HEAD"), _git(file, "status", "--porcelain")
    return {
        "revision": head.stdout.strip() if head and not head.returncode else None,
        "dirty": bool(changes.stdout.strip()) if changes and not changes.returncode else None,
    }


def _git(file: Path, *words: str) -> subprocess.CompletedProcess[str] | None:
    """Run git in the folder of a file; return None if git is missing or does not end in time.

    Variables such as GIT_DIR are removed: git sets them in its hooks, and they would make it use
    another repository.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith("GIT_CONFIG")
    }
    try:
        return subprocess.run(
            ["git", "-C", str(file.parent), *words],
            capture_output=True, text=True, errors="replace", timeout=10, env=kept,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
