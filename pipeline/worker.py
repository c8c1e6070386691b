"""Run one process of a stage; `pipeline.execution.processes` starts it.

During the rendezvous, the process blocks in C, where Python handlers do not run. It has nothing to
save then, so a signal ends it at once. Afterwards `pipeline.contract.world` handles stop signals.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from pipeline.contract import interrupt
from pipeline.display.errors import DONE, STOPPED
from pipeline.execution import work


def main(directory: Path) -> int:
    """Run this process's part of the stage; return the exit code."""
    interrupt.die_with_parent(signal.SIGKILL)
    interrupt.defaults()
    return work.run(directory)


if __name__ == "__main__":
    ending = main(Path(sys.argv[1]))
    interrupt.ignore()
    if ending in (DONE, STOPPED):  # all is written; torch and DALI take a second to exit
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ending)
    sys.exit(ending)
