"""Send runs to Weights & Biases from their files: `python -m pipeline.sync [RUN…]`."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from pipeline.compare.collect import select
from pipeline.config import Wandb
from pipeline.config.base import STAGE_NAMES
from pipeline.display import exits
from pipeline.display.errors import DONE, FAILED, UserError
from pipeline.display.outside import say
from pipeline.planning.named_run import frozen
from pipeline.records import caches, named, rundir
from pipeline.records.provenance import PROJECT
from pipeline.tracking import command, environment, reach
from pipeline.tracking.reach import server, unreachable

SENT = ".wandb.sent"  # file with the digest of the files at the last complete sync
EXPECTED = (rundir.HISTORY, rundir.GROWTH, rundir.RESULT)


def main(arguments: list[str] | None = None) -> int:
    """Send runs."""
    parser = named.parser(
        "sync",
        "Send runs to Weights & Biases from their files, whether finished or still going.\n"
        "What is there already is not sent twice; run it as often as you like.",
        "`wandb login` first; WANDB_BASE_URL names a server of your own. Projects and entities are "
        "those\nof each run's tracking settings (tracking=disabled: project dyrep).\n"
        "Exit codes: 0 all is sent; 1 a run could not be sent, and is named; 2 bad input.",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names of runs (default: all)")
    parser.add_argument("--group", help="the runs of this group")
    parser.add_argument(
        "--jobs", type=named.count, default=4, help="how many at a time (default: 4)"
    )
    options = parser.parse_args(arguments)
    return exits.ending(lambda: _sync(options))


def _sync(options: argparse.Namespace) -> int:
    reach.check()
    caches.set_folders(options.root)
    runs = select(options.root, options.runs, options.group)
    if reason := unreachable(server()):
        raise UserError(f"{reason}; nothing is lost: try again from a machine that reaches it")
    _check_key()
    todo = [run for run in runs if _digest(run) != _sent(run)]
    failed = dict(_all(todo, options.jobs))
    for run, why in failed.items():
        say(f"{run.name}: {why}", file=sys.stderr)
    counts = Counter(sent=len(todo) - len(failed), unchanged=len(runs) - len(todo))
    words = (
        f"{counts['sent']} sent to {server()}, {counts['unchanged']} unchanged since they were sent"
    )
    if failed:
        again = f"python -m pipeline.sync{named.elsewhere(options.root)}"
        say(f"error: {words}, {len(failed)} failed; again: {again}", file=sys.stderr)
        return FAILED
    say(words)
    return DONE


def _check_key() -> None:
    import wandb

    try:
        there = wandb.login(prompt=False)
    except wandb.Error as error:
        raise UserError(f"W&B: {error}; run `wandb login --relogin`, then again") from None
    if not there:
        raise UserError(f"there is no API key for {server()}; run `wandb login`, then again")


def _all(runs: list[Path], jobs: int) -> Iterator[tuple[Path, str]]:
    """Send runs, several at a time; yield those that could not be sent, and why."""
    from rich.progress import track

    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_send, run): run for run in runs}
        try:
            silent = not sys.stdout.isatty()
            for done in track(as_completed(waiting), "sending", len(runs), disable=silent):
                if why := done.result():
                    yield waiting[done], why
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def _send(run: Path) -> str | None:
    """Send one run in a child process; return the error, if any."""
    before = _digest(run)  # taken first, so that rows added meanwhile are sent the next time
    try:
        if original := named.copied_from(run):
            again = named.relaunch(run.parent.parent, run.name)
            return f"a copy of run '{original}', with its W&B run; `{again}` gives it its own"
        done = subprocess.run(
            command(run, _wanted(run), "--mode", "online"),
            capture_output=True, text=True, cwd=PROJECT, env=environment(run),
        )  # fmt: skip
    except UserError as error:
        return str(error)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        return lines[-1].removeprefix("error: ") if lines else f"exit code {done.returncode}"
    rundir.write_text(run / SENT, before)
    return None


def _wanted(run: Path) -> Wandb:
    """Return the W&B destination of a run."""
    tracked = frozen(run).tracking
    if isinstance(tracked, Wandb):
        return tracked
    return Wandb(mode="online", project="dyrep", entity=None)


def _sent(run: Path) -> str | None:
    try:
        return rundir.read_text(run / SENT)
    except (UserError, FileNotFoundError):  # all is sent again, and the server drops what it has
        return None


def _digest(run: Path) -> str:
    """Return a value that changes with new rows or results, or with another server."""
    facts: list[object] = [server()]
    for path in (run / stage / name for stage in STAGE_NAMES for name in EXPECTED):
        if path.exists():
            known = path.stat()
            facts.append((str(path.relative_to(run)), known.st_size, known.st_mtime_ns))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
