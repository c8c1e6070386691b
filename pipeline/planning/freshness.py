"""Compare the images on disk with those that were prepared, at launch.

A difference is only noted and nothing is refused, because trained networks stay valid.
"""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path

from pipeline.config import Config
from pipeline.data.sources import changes
from pipeline.data.sources.changes import Changes
from pipeline.display.errors import gist
from pipeline.display.masking import mask
from pipeline.display.outside import say
from pipeline.planning.planned_stage import PlannedStage

PATIENCE = 10.0  # seconds that comparing the files may take


def note_changes(config: Config, prep: PlannedStage, overrides: list[str]) -> None:
    """Print a note if the images differ from what was prepared, or cannot be compared."""
    root = config.data.root
    if prep.state != "done" or prep.repeats or root is None or config.data.name == "custom":
        return
    left_out = ("dry_run=", "again=", *(() if prep.wanted else ("stage=", "stage.run=")))
    folder = (prep.dir / "data").resolve()
    for what in _notes(Path(root), folder):
        words = [word for word in overrides if not word.startswith(left_out)]
        again = shlex.join(["python", "-m", "pipeline.launch", *map(mask, words), "again=[prep]"])
        say(f"note: {what}; what is prepared is used as it is. To prepare it again: {again}")


@cache  # every run of a sweep calls this
def _notes(root: Path, folder: Path) -> list[str]:
    if not root.is_dir():
        return [f"data.root={root} is not there, so it is unknown whether the images have changed"]
    if not (folder / changes.FILE).exists():
        return [f"{folder} is of an older version, so it is unknown whether {root} has changed"]
    try:
        return _differences(root, changes.compare(root, folder / changes.FILE, PATIENCE))
    except changes.DAMAGED as error:
        why = f"{folder / changes.FILE} is damaged ({gist(error)})"
        return [f"{why}, so it is unknown whether {root} has changed"]


def _differences(root: Path, found: Changes) -> list[str]:
    notes = [f"data.root={root} has changed since it was prepared: {found}"] * bool(str(found))
    if found.unseen:
        notes.append(
            f"{found.unseen:,} of {found.files:,} files below {root} were not compared with what "
            f"was prepared, because that took more than {PATIENCE:.0f} s"
        )
    return notes
