"""Keep a copy of the user's code for each run, in `<root>/code` under the hash of its files.

Stages import the copy, so later edits do not change a run that has begun. For an installed package
the release is recorded instead.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.config import Config
from pipeline.config.base import Section, Target, Values
from pipeline.custom import files
from pipeline.display.errors import UserError
from pipeline.records import rundir, snapshot
from pipeline.records.provenance import git_state
from pipeline.records.schemas import Facts

SECTIONS = ("model", "data")
Custom = tuple[str, Target]  # name of a section, and the section


def targets(config: Config) -> list[Custom]:
    """Return the sections that name the user's code."""
    found = ((name, getattr(config, name, None)) for name in SECTIONS)
    return [(name, section) for name, section in found if isinstance(section, Target)]


def pin(values: Values) -> Values:
    """Return the settings with each `code: null` replaced by the hash of the present code.

    Raises:
        UserError: there is no such module.
    """
    for name in SECTIONS:
        section = values[name]
        if section.get("code", "") is None and ":" in str(section.get("target")):
            values = {**values, name: {**section, "code": _present(name, str(section["target"]))}}
    return values


def loosened(values: Values, name: str) -> Values:
    """Return the settings with the `code` of a section set to null, for `pin`."""
    if name not in SECTIONS or "target" not in values[name]:
        return values
    return {**values, name: {**values[name], "code": None}}


def check(config: Config) -> None:
    """Check that the code of a run is available.

    Raises:
        UserError: the copy is missing or was changed, and the present code differs.
    """
    for name, section in targets(config):
        if _copied(section) and not _kept(config, section):
            _same(name, section)


def keep(config: Config) -> None:
    """Copy the code of a run, unless the copy exists."""
    for name, section in targets(config):
        if _copied(section) and not _kept(config, section):
            snapshot.keep(_same(name, section), _code_dir(Path(config.root), section))


def notes(config: Config) -> Iterator[str]:
    """Yield notes about code that has changed since the run began."""
    for name, section in targets(config):
        try:
            now = _present(name, section.target)
        except UserError:  # the module was moved or removed: the copy is used
            continue
        if now == section.code:
            continue
        if _copied(section):
            yield (
                f"the code of {section.target} has changed since run {config.name} began; the run "
                f"uses its copy in {rundir.shown(_code_dir(Path(config.root), section))}; for "
                "the code as it is now, choose another name="
            )
        else:
            yield f"{section.target} was of {section.code} when run {config.name} began, now {now}"


def origins(config: Config, known: Facts) -> Facts:
    """Return the origin of the code of a run, by section, if the code is unchanged there."""
    found = {}
    for name, section in targets(config):
        try:
            path = next(iter(files.find(name, section.target).values()), None)
            if path and _present(name, section.target) == section.code:
                found[name] = {"code": section.code, "file": str(path), **git_state(path)}
        except UserError:  # moved or removed
            continue
    return known | found


def enable(section: Section, root: Path) -> None:
    """Put the copy of a section's code on Python's path, if the section names code.

    Raises:
        UserError: the copy is missing, or other users may have changed it.
    """
    if not isinstance(section, Target) or not _copied(section):
        return
    code_dir = _code_dir(root, section)
    if not code_dir.is_dir():
        raise UserError(
            f"{code_dir}, the copy of {section.target}, is gone; launch again to make it"
        )
    snapshot.check(code_dir, str(section.code))
    on_path(code_dir)


def on_path(code_dir: Path) -> None:
    """Put a folder first on Python's path."""
    sys.path.insert(0, str(code_dir.resolve()))


@contextmanager
def lent(values: Values, root: Path) -> Iterator[str]:
    """Yield a folder with the code of a section, even before it is copied; "" without such code.

    Raises:
        UserError: as `check`.
    """
    name = next((name for name in SECTIONS if "target" in values.get(name, {})), None)
    section = name and Target(**{key: values[name][key] for key in Target.model_fields})
    if not name or not section or not _copied(section):
        yield ""
    elif _code_dir(root, section).is_dir():
        yield str(_code_dir(root, section).resolve())
    else:
        with TemporaryDirectory() as scratch:
            yield str(snapshot.keep(_same(name, section), Path(scratch).resolve() / "code"))


def _present(name: str, target: str) -> str:
    """Return the hash of the present code, or the release of its package."""
    found = files.find(f"{name}.target", target)
    return snapshot.digest(found) if found else files.release(target)


def _copied(section: Target) -> bool:
    return "==" not in str(section.code)


def _code_dir(root: Path, section: Target) -> Path:
    return rundir.code_dir(root, str(section.code))


def _kept(config: Config, section: Target) -> bool:
    code_dir = _code_dir(Path(config.root), section)
    if not code_dir.is_dir():
        return False
    snapshot.check(code_dir, str(section.code))
    return True


def _same(name: str, section: Target) -> snapshot.Files:
    """Return the present files of a section.

    Raises:
        UserError: their hash is not that of the section.
    """
    found = files.find(f"{name}.target", section.target)
    if not found or snapshot.digest(found) != section.code:
        raise UserError(
            f"{name}.code={section.code}: there is no copy of it below root, and {section.target} "
            "has changed; restore the copy or the code, or choose another name="
        )
    return found
