"""Turn images into a fused, measured classifier: prep, train, fuse, eval, latency.

`launch` composes the configuration, plans which stages to run, and starts
`python -m pipeline.run DIR` for each; a stage is finished when its directory contains
`result.json`.
"""

import sys

# `python -m` imports from the current directory first, where other users may have put modules.
# Nothing is imported before this: even a module of the standard library could be planted.
here = [f"{sys.path[0]}/{__name__}"]
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and __path__ != here:
    del sys.path[0]

from pipeline.display import needs  # noqa: E402

needs.check()  # before a command imports the packages that may be missing
