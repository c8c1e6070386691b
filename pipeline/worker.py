"""One process of a stage, started by `pipeline.execution.processes`.

During rendezvous it blocks in C, where Python handlers do not run, and has nothing to save: a
signal ends it at once. Afterwards `pipeline.contract.world` handles stop signals.
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
    """Run the part of this process; return the exit code."""
    interrupt.die_with_parent(signal.SIGKILL)
    interrupt.defaults()
    return work.run(directory)


if __name__ == "__main__":
    ending = main(Path(sys.argv[1]))
    interrupt.ignore()
    if ending in (DONE, STOPPED):  # everything is written; torch and DALI take a second to go
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ending)
    sys.exit(ending)
