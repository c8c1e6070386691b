"""Does growing branches pay? Many ways to train at equal cost: `python -m benchmarks.growth_study`.

`arms` says what is compared, `training` makes one run, `prices` measures what a step costs, `plan`
orders the runs by worth, `shelf` keeps the finished ones, `report` reads them.
"""
