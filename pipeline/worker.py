"""One of the processes of a stage; `pipeline.execution.processes` starts it.

Until it has met the others it has nothing to save, and waits in C, deaf to handlers: a signal ends
it. From then on `training.distributed` listens.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from pipeline import run
from pipeline.signals import interrupt


def main(directory: Path) -> int:
    """Do the part of this process; return the exit code."""
    interrupt.die_with_parent(signal.SIGKILL)
    interrupt.defaults()
    return run.work(directory)


if __name__ == "__main__":
    ending = main(Path(sys.argv[1]))
    interrupt.ignore()
    sys.exit(ending)
