"""From images to a fused, measured classifier: prep, train, fuse, eval, latency.

`launch` composes the configuration, plans which stages to run, and starts
`python -m pipeline.run DIR` for each; a stage is finished when its directory contains
`result.json`.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if Path(sys.argv[0]).name in ("-m", "dyrep"):  # checked before commands import them
    missing = [name for name in ("pydantic", "rich", "yaml") if find_spec(name) is None]
    if missing:
        from pipeline.display.outside import say

        say(
            f"error: {sys.executable} has no {', '.join(missing)}; of a checkout, activate the "
            "environment (`source .venv/bin/activate`, which `make demo` makes); of a wheel, "
            "`pip install 'WHEEL[pipeline]'` with the path of its file",
            file=sys.stderr,
        )
        raise SystemExit(2)
