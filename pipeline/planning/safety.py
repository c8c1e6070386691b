"""Warn at launch about secrets among the settings, a root that others can write to, no /proc."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from pipeline.config import Config
from pipeline.display import masking
from pipeline.display.outside import say
from pipeline.planning import machine
from slurm import private

SHOWN = 60  # at most so many characters of a setting are printed


def warn(config: Config) -> None:
    """Print the warnings, each once even in a sweep of many runs."""
    for key, what in masking.found(config.model_dump(mode="json")):
        if key == "root":
            _warn(f"root={what} looks as if it held a secret, and paths are shown; choose another")
            continue
        shown = what if len(what) <= SHOWN else f"{what[:SHOWN]}…"
        _warn(
            f"{key} looks as if it held a secret ({shown}); it is masked where shown, but kept "
            f"below {masking.mask(config.root)}, for you alone to read; better leave it out and "
            "export it in the shell that launches, or have cluster.setup source a file of mode 600"
        )
    _warn_of_shared(Path(config.root), config.name)
    _warn_of_planted()
    if config.cluster.name == "local" and not machine.PROC.exists():
        _warn(
            "/proc cannot be read here: libraries do not recognize the processor and compute more "
            f"slowly, which eval and latency show; {machine.MOUNT}"
        )


def _warn_of_shared(root: Path, run: str) -> None:
    names = ("stages", "runs", "data", "cache", f"runs/{run}")
    folders = [root, *(root / name for name in names)]
    for folder in folders:
        if folder.is_dir() and (who := private.writers(folder)):
            closed = "close it (chmod go-w) or " * (folder.stat().st_uid == os.geteuid())
            _warn(
                f"{who} may write to {folder}, and so change what your runs read, execute and "
                f"report; {closed}choose another root=, unless you trust them"
            )
            return


def _warn_of_planted() -> None:
    for folder in map(Path, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if folder.is_dir() and (who := private.adders(folder)):
            _warn(
                f"{who} may write to {folder}, from which Python imports, and so run code as you; "
                "close it (chmod go-w) or take it off PYTHONPATH, unless you trust them"
            )


@cache
def _warn(line: str) -> None:
    say(f"warning: {line}", file=sys.stderr)
