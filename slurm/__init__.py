"""Run commands on a SLURM cluster so that no work is lost; usable without the other packages."""

import sys

# `python -m` imports from the current directory first, where other users may have put modules.
# Nothing is imported before this: even a module of the standard library could be planted.
here = [f"{sys.path[0]}/{__name__}"]
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and __path__ != here:
    del sys.path[0]
