"""Parse the options of Hydra that a launch accepts, each at most once."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser

from pipeline.display.errors import UserError
from pipeline.planning import folder
from pipeline.records import rundir
from pipeline.records.provenance import version

NOT_OURS = {  # options of Hydra that make no sense for a launch
    "config_path": "the settings are those of conf/; --config-dir DIR adds choices of yours",
    "config_name": "there is one; --config-dir DIR adds choices of yours, e.g. experiment=NAME",
    "experimental_rerun": "name=NAME launches a run again",
}


def parsed(arguments: list[str]) -> Namespace:
    """Return the options and settings of a command line.

    Raises:
        UserError: an option is unknown, given twice, or makes no sense for a launch.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    actions = {action.dest: action for action in parser._actions}
    actions["version"].version = f"dyrep {version()}"  # type: ignore[attr-defined]  # not Hydra's
    known = parser.parse_intermixed_args(arguments, _Once())
    _check(known)
    return known


class _Once(Namespace):
    """Refuses an option given twice, of which argparse would silently keep the last value."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, str) and isinstance(before := getattr(self, name, None), str):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} is given twice, {before} and {value}; give it once")
        super().__setattr__(name, value)


def _check(known: Namespace) -> None:
    for name, cure in NOT_OURS.items():
        if getattr(known, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is not for launch: {cure}")
    for name in ("resolve", "package"):
        if getattr(known, name) and not known.cfg:
            raise UserError(f"--{name} goes with --cfg job alone; leave it out")
    if known.hydra_help and known.overrides:
        raise UserError(f"--hydra-help goes alone; leave {known.overrides[0]} out")
    actions = {word.partition("=")[0].lstrip("+") for word in known.overrides}
    if known.shell_completion and not actions & {"install", "uninstall", "query"}:
        raise UserError('--shell-completion is for shells; eval "$(dyrep --completion)" completes')
    if known.config_dir is not None:
        folder.check(folder_of(known) or "''")


def folder_of(known: Namespace) -> str | None:
    """Return the absolute path given by `--config-dir`; None if it is not given."""
    return known.config_dir and str(rundir.absolute(known.config_dir))


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; python -m pipeline.launch --help shows what there is")
