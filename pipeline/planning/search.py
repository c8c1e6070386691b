"""Search with Optuna: Hydra's sweeper proposes settings, and each proposal runs to its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.display import exits
from pipeline.display.errors import DONE, UserError, gist, nearest
from pipeline.planning.compose import Composed, by_hydra, parse
from pipeline.planning.explain import HYDRA_ERRORS
from pipeline.planning.settings_along import addable, of_proposal
from pipeline.records import rundir, store
from pipeline.records.schemas import Result

if TYPE_CHECKING:
    from pipeline.config import Config

SWEEPER = "search"  # our configuration of Optuna's sweeper
Trial = Callable[[Composed], tuple[int, float | None]]


def check_sweeper(sweeper: str) -> None:
    """Refuse an unknown sweeper, or one that is not installed.

    Raises:
        UserError: the message names the valid sweepers, or says what to install.
    """
    if sweeper == "optuna":
        raise UserError(
            "hydra/sweeper=optuna is the plugin's own configuration, which looks for the lowest "
            f"top-1; write hydra/sweeper={SWEEPER}, which has Optuna look for the highest"
        )
    if sweeper != SWEEPER:
        valid = nearest(sweeper, ["basic", SWEEPER])
        raise UserError(f"there is no hydra/sweeper={sweeper}; {valid}")
    if find_spec("optuna") is None:
        raise UserError("a search needs Optuna: pip install hydra-optuna-sweeper")


def run(settings: list[str], trial: Trial, folder: str | None = None) -> int:
    """Run the proposals of Optuna one after the other; return the worst exit code.

    Args:
        settings: the settings of the command line.
        trial: runs one proposal; returns its exit code, and its score if it succeeded.
        folder: the user's folder of further choices (`--config-dir`).

    Raises:
        UserError: Optuna refuses the search.
    """
    wider = dict(zip(settings, addable(settings, folder), strict=True))
    codes: list[int] = []
    begun = False

    def one(proposal: Composed) -> float | None:
        nonlocal begun
        begun = True
        code, worth = trial(of_proposal(proposal, folder))
        codes.append(code)
        return worth

    sys.argv[1:] = [wider.get(word, word) for word in sys.argv[1:]]
    try:
        with noted(settings):
            by_hydra(one)
    except (UserError, OSError, *HYDRA_ERRORS):
        raise
    except Exception as error:
        if not begun:
            raise UserError(f"Optuna refuses the search: {gist(error)}") from None
        if not (isinstance(error, ValueError) and any(codes)):
            raise  # otherwise Optuna complains that no trial succeeded
    return exits.worst(DONE, *codes)


@contextmanager
def noted(settings: list[str]) -> Iterator[None]:
    """Let Optuna write its notes to a temporary folder in a dry run."""
    dry = [o.value() for o in parse(settings) if o.key_or_group == "dry_run"]
    if True not in dry:
        yield
        return
    with TemporaryDirectory(prefix="dry-run-") as scratch:
        at = next(i for i, word in enumerate(sys.argv) if word.startswith("hydra/sweeper="))
        sys.argv.insert(at + 1, f"hydra.sweep.dir={scratch}")
        yield


def score(config: Config) -> float | None:
    """Return the fused top-1 of a run, if there is one; for a dry run, a neutral value."""
    folder = rundir.run_dir(Path(config.root), config.name) / "eval"
    if config.dry_run:
        return 0.0
    there = (folder / rundir.RESULT).exists()
    return store.read(Result, folder).metrics["fused/top1"] if there else None
