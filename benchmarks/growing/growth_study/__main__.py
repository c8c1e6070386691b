"""Study whether growing branches pays: arms at equal cost over paired seeds, on Fashion-MNIST.

    python -m benchmarks.growth_study                  # hours; can be stopped and continued
    python -m benchmarks.growth_study --minutes 30
    python -m benchmarks.growth_study --arms repvgg orepa --networks deep
    python -m benchmarks.growth_study --dry-run        # the missing runs, and their time
    python -m benchmarks.growth_study --report         # the results of the finished runs

A training may cost as much as 8 epochs of the plain network, counted in steps of that network. Its
learning rate reaches zero when this budget is spent, so an arm whose step costs 1.5 makes fewer
steps. Finished runs are lines of `runs.jsonl` in the results folder and are not run again; an
interrupted run starts from the beginning. Start the command once per core to run several at a time;
each uses one thread. Changes of the code invalidate a running study, so run it from a clone.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks import RESULTS
from benchmarks.growth_study import data, plan, report
from benchmarks.growth_study.arms import ARMS
from benchmarks.growth_study.networks import NETWORKS
from benchmarks.growth_study.shelf import Run, Shelf
from benchmarks.growth_study.training import Size, Training
from pipeline.display import exits
from pipeline.display.errors import DONE

Wanted = Callable[[plan.Rows], Iterator[Run]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "growth_study", metavar="DIR")
    parser.add_argument("--data", type=Path, default=data.DEBIAN, metavar="DIR")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), metavar="N",
        help="begin no run that would end later",
    )  # fmt: skip
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM",
                        help=f"run no others (of {', '.join(ARMS)})")  # fmt: skip
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK",
        help=f"run no others (of {', '.join(NETWORKS)})",
    )  # fmt: skip
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="list the runs and their hours")
    instead.add_argument("--report", action="store_true", help="print tables, draw the figure")
    options = parser.parse_args(arguments)
    shelf = Shelf(options.results)
    if options.report:
        return exits.ending(lambda: report.show(shelf))
    wanted = partial(plan.wanted, networks=options.networks, arms=options.arms)
    if options.dry_run:
        return exits.ending(lambda: listed(shelf, wanted))
    end = time.monotonic() + 60 * options.minutes
    return exits.ending(lambda: work(shelf, options.data, end, Size(), wanted))


def work(shelf: Shelf, folder: Path, end: float, size: Size, wanted: Wanted = plan.wanted) -> int:
    """Make one run after the other until none is missing that would end before `end`."""
    torch.set_num_threads(1)
    images = data.read(folder, size.train, size.test)
    while one_more(shelf, images, end, size, wanted):
        pass
    return DONE


def one_more(shelf: Shelf, images: data.Images, end: float, size: Size, wanted: Wanted) -> bool:
    """Make the first run that no other worker makes and for which there is time, if any."""
    rows = shelf.rows()
    for run in wanted(rows):
        if time.monotonic() + plan.seconds(rows, run) > end:
            continue
        with shelf.claim(run) as mine:
            if mine:
                made(run, images, size, shelf)
                return True
    return False


def made(run: Run, images: data.Images, size: Size, shelf: Shelf) -> None:
    """Make a run and keep its result."""
    rows = shelf.rows()
    like = plan.model_run(rows, run)
    training = Training(run, images, size, shelf, rows[like]["structure"] if like else None)
    result = training()
    shelf.add(run, result)
    text = f"{result['accuracy']:.2f} % at cost {result['cost']:.0f}, {result['seconds']:.0f} s"
    print(f"{run.network} {run.arm} rate {run.rate:g} seed {run.seed}: {text}", flush=True)


def listed(shelf: Shelf, wanted: Wanted) -> int:
    """Print the runs that can be made now, and the number that the whole study lacks."""
    rows = shelf.rows()
    runs = list(wanted(rows))
    for run in runs:
        print(f"{run.network} {run.arm} rate {run.rate:g} seed {run.seed}")
    hours = sum(plan.seconds(rows, run) for run in runs) / 3600
    print(f"{len(runs)} runs, about {hours:.1f} hours on one core")
    print(f"{plan.missing(rows)} are missing, with those that follow from them; {len(rows)} made")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
