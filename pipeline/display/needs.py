"""What commands need installed: said in one line, where Python would show a traceback."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from pipeline.display.outside import say


def check() -> None:
    """End with exit code 2 if a command was called and its Python lacks what it imports first."""
    if Path(sys.argv[0]).name not in ("-m", "dyrep"):
        return
    missing = [name for name in ("pydantic", "rich", "yaml") if find_spec(name) is None]
    if missing:
        say(
            f"error: {sys.executable} has no {', '.join(missing)}; of a checkout, activate the "
            "environment (`source .venv/bin/activate`, which `make demo` makes); of a wheel, "
            "`pip install 'WHEEL[pipeline]'` with the path of its file",
            file=sys.stderr,
        )
        raise SystemExit(2)
