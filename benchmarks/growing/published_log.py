"""Compare a training log that the authors of DyRep published with a run of ours, by epoch.

    curl -LO https://github.com/hunto/DyRep/releases/download/v1.0.0/dyrep_cifar10_vgg16.txt
    python -m benchmarks.published_log dyrep_cifar10_vgg16.txt outputs/runs/NAME

The reader follows the code that writes such logs (`validate` in tools/train.py of
github.com/hunto/image_classification_sota); it was not tried on a published log.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from pipeline.display import exits
from pipeline.display.errors import DONE, UserError
from pipeline.records import rundir

TESTED = re.compile(r"Test: (\d+) \[.*Top-1: [\d.]+% \(([\d.]+)%\)")
EVERY = 10  # epochs between two rows of the table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", type=Path)
    parser.add_argument("run", type=Path, help="directory of a run")
    options = parser.parse_args(arguments)
    return exits.ending(lambda: compare(options.log, options.run))


def compare(log: Path, run: Path) -> int:
    """Print top-1 of both by epoch, and their best and last."""
    theirs, ours = published(log), own(run)
    common = sorted(theirs.keys() & ours.keys())
    step = max(1, len(common) // EVERY)
    print("epoch  published  here  difference")
    for epoch in common[step - 1 :: step]:
        there, here = theirs[epoch], ours[epoch]
        print(f"{epoch:5}  {there:9.2f} {here:5.2f}  {here - there:+10.2f}")
    for name, of in (("published", theirs), ("here", ours)):
        last = max(of)
        print(f"{name}: best {max(of.values()):.2f} %, last {of[last]:.2f} % after {last} epochs")
    return DONE


def published(log: Path) -> dict[int, float]:
    """Return top-1 by epoch, from 1; of several tests of an epoch, the last one counts.

    Raises:
        UserError: the log is missing or has no tests.
    """
    if not log.is_file():
        raise UserError(f"{log} is not there; fetch it as --help says")
    tests = TESTED.findall(log.read_text())
    if not tests:
        raise UserError(f"{log} has no line like 'Test: 0 [ 78/79] … Top-1: …% (…%)'")
    return {int(epoch) + 1: float(top1) for epoch, top1 in tests}


def own(run: Path) -> dict[int, float]:
    """Return top-1 by epoch.

    Raises:
        UserError: the run has not finished an epoch.
    """
    rows = rundir.read_lines(run / "train" / rundir.HISTORY)
    found = {row["epoch"]: row["top1"] for row in rows if row["kind"] == "epoch"}
    if not found:
        raise UserError(f"{run} has no finished epoch; it is to be a directory in outputs/runs/")
    return found


if __name__ == "__main__":
    sys.exit(main())
