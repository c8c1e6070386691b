"""Writing the fused network in formats that run without this project, and proof that they do.

`formats` writes, `card` says what the file is, `runtime` runs it, and `verify` has `runtime` load
the file in a process that imports nothing of ours, checks that, and compares the scores.
"""
