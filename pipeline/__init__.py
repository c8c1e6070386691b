"""From images to a fused, measured classifier: prep, train, fuse, eval, latency.

`launch` composes the configuration, plans which stages are new, and has each run by
`python -m pipeline.run DIR`; a stage is finished when its directory holds `result.json`.
"""

import sys
from importlib.util import find_spec

if sys.argv[:1] == ["-m"]:  # as a command: what is missing is told before it is imported
    missing = [name for name in ("pydantic", "rich", "yaml") if find_spec(name) is None]
    if missing:
        from pipeline.display.outside import say

        say(
            f"error: {sys.executable} has no {', '.join(missing)}; activate the environment of the "
            "project first (`source .venv/bin/activate`, which `make demo` makes)",
            file=sys.stderr,
        )
        raise SystemExit(2)
