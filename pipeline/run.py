"""Run the stage of DIR/stage.yaml: every job executes `python -m pipeline.run DIR`.

It reads only DIR and the directories of its parents, and needs neither launcher nor Hydra. So a
stage can be repeated or debugged with its directory alone. Train and eval run in child processes
(`pipeline.worker`), each of which executes `pipeline.execution.work`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

from pipeline.contract import interrupt
from pipeline.contract.stage import Stage
from pipeline.contract.table import STAGES
from pipeline.display.errors import (
    BAD_INPUT,
    DONE,
    STOPPED,
    Interrupted,
    UserError,
    from_os_error,
)
from pipeline.display.outside import say
from pipeline.execution import ending, processes, work
from pipeline.execution.after_stage import close_complete, followed
from pipeline.execution.processes import End
from pipeline.records import attempt, caches, rundir
from pipeline.records.schemas import Question, Where
from slurm import output, private
from slurm.place import Place


def main(arguments: list[str] | None = None) -> int:
    """Run the stage of a directory; return the exit code."""
    output.make_safe()
    private.keep_out()
    interrupt.install()
    interrupt.die_with_parent(signal.SIGTERM)
    processes.forget_others()
    options = _parser().parse_args(arguments)
    directory: Path = options.directory
    try:
        directory = Path(os.path.realpath(rundir.here() / directory))
        caches.set_folders(directory.parent.parent)
        return _own(STAGES[work.read(Question, directory).stage], directory)
    except Interrupted:
        return STOPPED
    except UserError as error:
        say(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        say(f"error: {from_os_error(error, directory)}", file=sys.stderr)
        return BAD_INPUT


def _own(stage: Stage, directory: Path) -> int:
    """Claim the directory and run its stage, in this process or in child processes."""
    if (directory / rundir.RESULT).exists():
        say(f"{directory.name} is finished; nothing to do")
        return DONE
    count = work.read(Where, directory).cluster.processes_per_node
    place = Place.from_environment(directory)
    if place and place.node:  # the first node claims the stage and reports its end
        number = attempt.join(directory, place.job, interrupt.requested)
        work.redirect(rundir.log_file(directory, number, node=place.node))
        return ending.of_other_node(_in_processes(directory, number, count, place))
    number = attempt.claim(directory, place.job if place else None)
    if place:
        work.redirect(rundir.log_file(directory, number))
    if not stage.processes:
        code = work.run(directory)
    else:
        with followed(directory) if stage.name == "train" else nullcontext():
            code = ending.verdict(directory, number, _in_processes(directory, number, count, place))
    if place and code == DONE:
        close_complete(directory)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.run",
        description="Run one stage, as described by the stage.yaml in its directory.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad input, 75 saved and stopped before the end.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="ROOT/stages/STAGE-FINGERPRINT")
    return parser


def _in_processes(directory: Path, number: int, count: int, place: Place | None) -> End | None:
    """Run the stage in child processes; record and return the first failure."""
    command = [sys.executable, "-u", "-m", "pipeline.worker", str(directory)]
    end = processes.run(command, count, place)
    ending.note_killed(directory, number, end)
    return end


if __name__ == "__main__":
    code = main()
    interrupt.ignore()
    sys.exit(code)
