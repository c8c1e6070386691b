"""Print logs over all attempts: `python -m pipeline.logs RUN [STAGE] [--rank N] [-f]`."""

from __future__ import annotations

import re
import sys
import time
from contextlib import redirect_stdout
from datetime import datetime
from io import StringIO
from pathlib import Path

from pipeline.config.base import STAGE_NAMES
from pipeline.display import exits
from pipeline.display.errors import DONE, UserError
from pipeline.display.outside import say, visible
from pipeline.records import named, rundir, stage_status, store
from pipeline.records.schemas import Event, Submission
from pipeline.records.stage_status import UNDER_WAY
from pipeline.records.timeline import WORDS, by_attempt
from slurm import output, scheduler

POLL = 0.5  # seconds between two reads
LOG = re.compile(r"attempt-(\d+)(?:\.(rank|node)(\d+))?\.log")
ASK = 10.0  # seconds between two queries to SLURM whether the run continues
END = 5  # lines shown of each stage but the last


def main(arguments: list[str] | None = None) -> int:
    """Print logs."""
    parser = named.parser(
        "logs",
        "Print the logs of a stage, attempt after attempt: of all its ranks and of its supervisors,"
        " with lines where it was interrupted."
        f"\nWithout STAGE: the last {END} lines of each stage that ended, then all of the one that"
        " runs or ran last; with -f then those after it, too."
        "\nControl characters are shown as escapes; the files have them as they were printed."
        "\nExit codes: 0 printed; 2 bad input, e.g. a stage that has not begun; 130 interrupted.",
    )
    parser.add_argument("run", metavar="RUN", help="name of a run")
    parser.add_argument("stage", nargs="?", choices=STAGE_NAMES, metavar="STAGE",
                        help=f"one of {' '.join(STAGE_NAMES)}")  # fmt: skip
    parser.add_argument(
        "--rank", type=named.rank, metavar="N", help="print the log of this rank alone"
    )
    parser.add_argument("-f", "--follow", action="store_true",
                        help="print new lines until the stage, or the run, ends")  # fmt: skip
    options = parser.parse_args(arguments)
    return exits.ending(
        lambda: _show(options.root, options.run, options.stage, options.rank, options.follow)
    )


def _show(root: Path, name: str, stage: str | None, rank: int | None, follow: bool) -> int:
    (run,) = named.find(root, [name])
    stages = named.stages(run)
    before, chosen = ([], [stage]) if stage else _split_at_last_begun(stages)
    if chosen[0] not in stages:
        has = ", ".join(stages) or "no stage"
        raise UserError(f"{chosen[0]} was not asked for in run '{name}'; it has {has}")
    for each in before:
        _show_end(root, name, each, stages[each], rank)
    for each in chosen:
        reader = Reader(root, stages[each], rank)
        say(f"== {each} of {name}: {stages[each]}")
        reader.read()
        if follow:
            _follow(each, reader)
        done = (stages[each] / rundir.RESULT).exists()
        if not reader.seen:
            what = "nothing was printed" if rank is None else f"rank {rank} printed nothing"
            say(what if done else f"{what} yet")
        if not follow or not done:
            break
    return DONE


def _split_at_last_begun(stages: dict[str, Path]) -> tuple[list[str], list[str]]:
    """Split the stages before the one that began last; the second list starts with that one."""
    names = list(stages) or ["prep"]
    begun = [name for name, path in stages.items() if (path / rundir.EVENTS).exists()]
    last = names.index(begun[-1]) if begun else 0
    return names[:last], names[last:]


def _show_end(root: Path, name: str, stage: str, directory: Path, rank: int | None) -> None:
    """Print the last lines of a stage, and the command that prints all of them."""
    printed = StringIO()
    with redirect_stdout(printed):
        Reader(root, directory, rank).read()
    lines = printed.getvalue().splitlines()
    say(f"== {stage} of {name}: {directory}")
    if (more := len(lines) - END) > 0:
        only = "" if rank is None else f" --rank {rank}"
        command = f"python -m pipeline.logs {name} {stage}{only}{named.elsewhere(root)}"
        say(f"-- {more} line{'s' * (more != 1)} before these: {command}")
    for line in lines[-END:]:
        say(line)


def _follow(stage: str, reader: Reader) -> None:
    """Print new output until a stage ends or cannot continue."""
    checked = time.monotonic()
    while not (reader.directory / rundir.RESULT).exists() and not output.gone():
        time.sleep(POLL)
        reader.read()
        if time.monotonic() - checked > ASK:
            checked = time.monotonic()
            if not _under_way(stage, reader.directory):
                break
    reader.read()


class Reader:
    """Prints new lines of the logs of a stage, with its events in between.

    Args:
        root: the root of the runs.
        directory: the directory of the stage.
        rank: the rank whose logs are printed; None for all ranks and the supervisors.
    """

    def __init__(self, root: Path, directory: Path, rank: int | None) -> None:
        self.directory = directory
        self.seen: dict[Path, int] = {}
        self._root, self._rank = root, rank
        self._printed: set[int] = set()
        self._last: Path | None = None

    def read(self) -> None:
        """Print the lines and events that are new since the last call."""
        if self._rank is None:
            for path in _of_jobs(self._root, self.directory):
                self._print(path)
        events = list(store.rows(Event, self.directory))
        logs = _of_attempts(self.directory, self._rank)
        for group in by_attempt(events):
            for number, row in group.opening:
                self._print_event(number, row)
            for path in logs.pop(group.attempt, []):
                self._print(path)
            for number, row in group.closing:
                self._print_event(number, row)
        for path in (path for some in logs.values() for path in some):
            self._print(path)

    def _print_event(self, number: int, row: Event) -> None:
        """Print an event once."""
        if number not in self._printed:
            self._printed.add(number)
            at = datetime.fromtimestamp(row.time)
            say(f"-- {at:%d %b %H:%M:%S} {WORDS[row.event](row)}")

    def _print(self, path: Path) -> None:
        with rundir.reading(path) as file:
            file.seek(self.seen.get(path, 0))
            new = file.read()
        if not new:
            return
        if path != self._last:
            say(f"-- {path}")
            self._last = path
        self.seen[path] = self.seen.get(path, 0) + len(new)
        text = new.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
        sys.stdout.write(visible(text))
        sys.stdout.flush()


def _of_jobs(root: Path, directory: Path) -> list[Path]:
    """Return the logs of the supervisors of a stage's jobs, on all nodes."""
    ids = dict.fromkeys(row.id for row in store.rows(Submission, directory) if row.id)
    return [path for id in ids for path in sorted(rundir.job_dir(root).glob(f"{id}_*_log.out"))]


def _of_attempts(directory: Path, rank: int | None) -> dict[int, list[Path]]:
    """Return the logs of each attempt: rank 0 first, then the other ranks and nodes."""
    found: dict[int, list[tuple[str, int, Path]]] = {}
    for path in (directory / "logs").glob("attempt-*.log"):
        if match := LOG.fullmatch(path.name):
            kind, number = match[2] or "", int(match[3] or 0)
            if rank is None or (kind in ("", "rank") and number == rank):
                found.setdefault(int(match[1]), []).append((kind, number, path))
    return {attempt: [path for *_, path in sorted(rows)] for attempt, rows in sorted(found.items())}


def _under_way(stage: str, directory: Path) -> bool:
    try:
        queue = scheduler.user_jobs()
    except (scheduler.Refused, scheduler.Unreachable):
        queue = None
    return stage_status.of(stage, directory, queue, {}).state in UNDER_WAY


if __name__ == "__main__":
    sys.exit(main())
