"""The log of a stage over all attempts: `python -m pipeline.logs RUN [STAGE] [-f]`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pipeline import commands
from pipeline.config.base import STAGE_NAMES
from pipeline.display.outside import say, visible
from pipeline.errors import DONE, UserError
from pipeline.records import rundir, store
from pipeline.records.schemas import Submission
from pipeline.records.stage_status import UNDER_WAY, look
from slurm import output, scheduler

POLL = 0.5  # seconds
ASK = 10.0  # seconds between two questions to SLURM whether there is anything to wait for


def main(arguments: list[str] | None = None) -> int:
    """Print logs."""
    parser = commands.parser(
        "logs",
        "Print what a stage said, attempt after attempt, and what supervised it.",
        "Without STAGE: the one that runs or ran last. Other ranks' logs lie beside, in logs/."
        "\nWhat would steer a terminal is shown as escapes; the files have it as it was printed."
        "\nExit codes: 0 printed; 2 bad input, e.g. a stage that has not begun; 130 interrupted.",
    )
    parser.add_argument("run", metavar="RUN", help="name of a run")
    parser.add_argument("stage", nargs="?", choices=STAGE_NAMES, metavar="STAGE",
                        help=f"one of {' '.join(STAGE_NAMES)}")  # fmt: skip
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the stage ends")
    options = parser.parse_args(arguments)
    return commands.ending(lambda: _show(options.root, options.run, options.stage, options.follow))


def _show(root: Path, name: str, stage: str | None, follow: bool) -> int:
    (run,) = commands.find(root, [name])
    stages = commands.stages(run)
    if stage is None:
        begun = [s for s, path in stages.items() if (path / rundir.EVENTS).exists()]
        stage = (begun or list(stages))[-1 if begun else 0] if stages else "prep"
    if stage not in stages:
        raise UserError(
            f"{stage} was not asked for in run '{name}'; it has {', '.join(stages) or 'no stage'}"
        )
    directory = stages[stage]
    reader = Reader(files(root, directory))
    say(f"== {stage} of {name}: {directory}")
    reader.read()
    asked = time.monotonic()
    while follow and not (directory / rundir.RESULT).exists() and not output.gone():
        time.sleep(POLL)
        reader.paths = files(root, directory)
        reader.read()
        if time.monotonic() - asked > ASK:
            asked = time.monotonic()
            if not _under_way(stage, directory):
                break
    reader.paths = files(root, directory)
    reader.read()
    if not reader.seen:
        print("nothing was printed yet")
    return DONE


def files(root: Path, directory: Path) -> list[Path]:
    """Return the logs of a stage's attempts, and those of its jobs' supervision."""
    attempts = [
        p for p in sorted((directory / "logs").glob("attempt-*.log")) if p.suffixes == [".log"]
    ]
    ids = dict.fromkeys(row.id for row in store.rows(Submission, directory) if row.id)
    jobs = [rundir.job_dir(root) / f"{id}_0_log.out" for id in ids]
    return [*(path for path in jobs if path.exists()), *attempts]


class Reader:
    """Prints what is new in files that grow."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.seen: dict[Path, int] = {}
        self._last: Path | None = None

    def read(self) -> None:
        """Print what has come since."""
        for path in self.paths:
            with rundir.reading(path) as file:
                file.seek(self.seen.get(path, 0))
                new = file.read()
            if not new:
                continue
            if path != self._last:
                say(f"-- {path}")
                self._last = path
            self.seen[path] = self.seen.get(path, 0) + len(new)
            said = new.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
            sys.stdout.write(visible(said))
            sys.stdout.flush()


def _under_way(stage: str, directory: Path) -> bool:
    try:
        queue = scheduler.mine()
    except (scheduler.Refused, scheduler.Unreachable):
        queue = None
    return look(stage, directory, queue, {}).state in UNDER_WAY


if __name__ == "__main__":
    sys.exit(main())
