"""Writing the fused network in formats that run without this project, and proof that they do.

`formats` writes, `card` says what the file is, `runtime` runs it, and `check` has `runtime` load
the file in a process that cannot import anything of ours and compares the scores.
"""
