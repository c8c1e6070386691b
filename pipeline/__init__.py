"""From images to a fused, measured classifier: prep, train, fuse, eval, latency.

`launch` composes the configuration, plans which stages are new, and has each run by
`python -m pipeline.run DIR`; a stage is finished when its directory holds `result.json`.
"""
