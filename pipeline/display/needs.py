"""Check that commands can import what they need; print one line instead of a traceback."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from pipeline.display.outside import say

PROJECT = Path(__file__).resolve().parents[2]


def check() -> None:
    """End with exit code 2 if a command was called and its first imports would fail."""
    if Path(sys.argv[0]).name not in ("-m", "dyrep"):
        return
    if why := _missing() or _shadowed():
        say(f"error: {why}", file=sys.stderr)
        raise SystemExit(2)


def _missing() -> str | None:
    missing = [name for name in ("pydantic", "rich", "yaml") if find_spec(name) is None]
    if not missing:
        return None
    return (
        f"{sys.executable} has no {', '.join(missing)}; of a checkout, activate the "
        "environment (`source .venv/bin/activate`, which `make demo` makes); of a wheel, "
        "`pip install 'WHEEL[pipeline]'` with the path of its file"
    )


def _shadowed() -> str | None:
    """Return an error if Python would import `slurm` or `dyrep` from a folder on PYTHONPATH."""
    for name in ("slurm", "dyrep"):
        spec = find_spec(name)
        if spec and spec.origin and Path(spec.origin).resolve().parents[1] != PROJECT:
            folder = Path(spec.origin).parents[1]
            return (
                f"{folder} has a package {name}, which Python takes for this project's; take that "
                "off PYTHONPATH"
            )
    return None
