"""Study whether growing branches pays, at equal cost: `python -m benchmarks.growth_study`.

`arms` defines the compared ways to train, `training` makes one run, `prices` measures the cost of a
step, `plan` orders the runs by importance, `shelf` keeps the finished runs, `report` reads them.
"""
