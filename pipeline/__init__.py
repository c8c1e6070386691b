"""Turn images into a fused, measured classifier: prep, train, fuse, eval, latency.

`launch` composes the configuration, plans which stages to run, and starts
`python -m pipeline.run DIR` for each; a stage is finished when its directory contains
`result.json`.
"""

from pipeline.display import needs

needs.check()  # before a command imports the packages that may be missing
