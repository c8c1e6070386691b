"""Export the fused network to formats that run without this project, and verify the files.

`formats` writes a file, `card` describes it, `runtime` runs it, and `verify` loads it by `runtime`
in a process that imports nothing of this project, and compares the scores.
"""
