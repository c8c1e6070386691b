"""Write a mirror of a run, in a process of its own: `python -m pipeline.tracking RUN_DIR`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from pipeline.display.errors import BAD_INPUT, DONE, FAILED, UserError
from pipeline.display.outside import say
from pipeline.tracking import curves, session
from pipeline.tracking.reach import server, unreachable

TRIES = "PIPELINE_FOLLOWER_TRIES"


def main(arguments: list[str] | None = None) -> int:
    """Write the W&B run of a run directory from its files."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.tracking", description=main.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--mode", choices=["offline", "online"], default="offline")
    parser.add_argument("--follow", type=int, metavar="PID", help="go on while a process lives")
    parser.add_argument("--project", default="dyrep")
    parser.add_argument("--entity")
    parser.add_argument("--curves", nargs="+", choices=list(curves.WRITERS), default=[])
    options = parser.parse_args(arguments)
    if options.curves:
        return _write_curves(options)
    if options.follow:
        return _follow(options)
    import wandb

    session.expire()
    try:
        sent = session.replay(options.run, options.mode, options.project, options.entity)
    except UserError as error:
        say(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except wandb.Error as error:
        say(f"error: W&B: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except TimeoutError:
        why = "the server did not accept all rows in time; the next call sends the rest"
        say(f"error: {why}", file=sys.stderr)
        return FAILED
    say(f"{sent} new steps written {options.mode}")
    return DONE


def _write_curves(options: argparse.Namespace) -> int:
    """Write CSV and event files instead of a W&B run."""
    if options.follow:
        _outlive_signals()
    try:
        count = curves.write(options.run, options.curves, options.follow)
    except (OSError, UserError) as error:
        say(f"error: {error}", file=sys.stderr)
        return FAILED
    say(f"{count} steps written as {' and '.join(options.curves)}")
    return DONE


def _outlive_signals() -> None:
    """Ignore signals that SLURM sends to all processes of a job."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _follow(options: argparse.Namespace) -> int:
    """Mirror a running training; restart if a signal for the whole job killed wandb's process."""
    _outlive_signals()
    environment = dict(os.environ)
    if reason := unreachable(server()):
        say(f"note: {reason}; the run is sent when it ends, or by pipeline.sync")
        return DONE
    try:
        session.follow(options.run, options.project, options.entity, options.follow)
    except UserError as error:
        say(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except Exception:
        tries = int(os.environ.get(TRIES, "3"))
        if not tries or session.over(options.run, options.follow):
            raise
        fresh = {
            **environment,
            TRIES: str(tries - 1),
        }  # without the variables of wandb's dead process
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], fresh)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
