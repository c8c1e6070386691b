"""Find runs by the names that commands are given, and build the commands that continue them."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from pathlib import Path
from typing import TypeVar

from pipeline.config.base import STAGE_NAMES
from pipeline.display.errors import UserError, nearest, unreadable
from pipeline.records import rundir, store
from pipeline.records.schemas import Run
from slurm import output

T = TypeVar("T")
OUTPUTS = "outputs"  # the default of `root`


def parser(name: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """Return the parser of `python -m pipeline.NAME`, with `--root`."""
    output.make_safe()
    made = argparse.ArgumentParser(
        prog=output.program(f"pipeline.{name}"),
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--root",
        type=_root,
        default=OUTPUTS,
        help=f"where runs live (default: {OUTPUTS})",
    )
    return made


def _root(text: str) -> Path:
    """Parse an option that is a path."""
    try:
        return rundir.absolute(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def rank(text: str) -> int:
    """Parse an option that is the number of a process."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def count(text: str) -> int:
    """Parse an option that is a number of at least one."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def elsewhere(root: Path) -> str:
    """Return the option `--root` for a root, or nothing for the default."""
    return "" if root == rundir.absolute(OUTPUTS) else f" --root {shlex.quote(str(root))}"


def relaunch(root: Path, name: str, *settings: str) -> str:
    """Return the command that continues a run, from the current directory."""
    plain = re.fullmatch(r"[\w/.+-]+", str(root), re.ASCII)
    quoted = str(root) if plain else "'" + str(root).replace("'", "\\'") + "'"  # for Hydra's parser
    there = [] if root == rundir.absolute(OUTPUTS) else [f"root={quoted}"]
    return shlex.join(["python", "-m", "pipeline.launch", f"name={name}", *settings, *there])


def time_again(run: Path) -> str:
    """Return the command that repeats the latency stage of a run."""
    return relaunch(run.parent.parent, run.name, "stage=latency", "again=[latency]")


def go_on(run: Path) -> str:
    """Return the command that continues a run with the stages of its last launch."""
    names = list(stages(run))
    some = [f"stage.run=[{','.join(names)}]"] if names and len(names) < len(STAGE_NAMES) else []
    return relaunch(run.parent.parent, run.name, *some)


def find(root: Path, names: list[str]) -> list[Path]:
    """Return the directories of the named runs, or of all runs, newest first.

    Raises:
        UserError: a named run does not exist.
    """
    there = {run.name: run for run in _runs(root)}
    for name in names:
        if "=" in name and name not in there:
            raise UserError(f"'{name}' is a setting, not the name of a run; {_meant(name)}")
    if not there:
        raise UserError(f"there are no runs in {root}; launch one, or name another --root")
    for name in names:
        if name not in there:
            raise UserError(f"there is no run '{name}' in {root}; {nearest(name, sorted(there))}")
    if names:
        return [there[name] for name in names]
    return sorted(there.values(), key=_launched, reverse=True)


def _meant(setting: str) -> str:
    """Return advice what to write instead of a setting, which these commands do not take."""
    key, _, value = setting.partition("=")
    if key == "name":
        return f"write {value} alone"
    return f"write --root {value}" if key == "root" else "settings are for pipeline.launch"


def _launched(run: Path) -> float:
    """Return the time of the last launch of a run; 0 if it cannot be read."""
    try:
        return (run / "run.json").lstat().st_mtime
    except OSError:
        return 0.0


def _runs(root: Path) -> list[Path]:
    """Return the directories of all runs, including damaged ones.

    Raises:
        UserError: the folder is not readable, or a dangling link.
    """
    rundir.check_links(root, "stages", "runs")
    folder = rundir.run_dir(root, "")
    try:
        return sorted(run for run in folder.iterdir() if rundir.there(run / "run.json"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(folder, error) from None


def groups(root: Path) -> tuple[dict[Path, str | None], list[Path]]:
    """Return the group of each run, and the runs whose group cannot be read."""
    found: dict[Path, str | None] = {}
    damaged = []
    for run in _runs(root):
        try:
            found[run] = store.read(Run, run).group
        except (UserError, OSError):
            damaged.append(run)
    return found, damaged


def stages(run: Path) -> dict[str, Path]:
    """Return the directories of a run's stages, by name, in their order."""
    there = [name for name in STAGE_NAMES if rundir.there(run / name)]
    return {name: Path(os.path.realpath(run / name)) for name in there}  # accepts loops of links


def copied_from(run: Path) -> str | None:
    """Return the name of the run that a folder is a copy of; None if it is no copy.

    Raises:
        UserError: the `run.json` of the folder is damaged.
    """
    name = store.read(Run, run).name
    original = name and name != run.name and rundir.there(run.with_name(name) / Run.FILE)
    return name if original else None
