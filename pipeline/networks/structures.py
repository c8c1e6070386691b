"""Add the final branches of another run to a new network."""

from __future__ import annotations

from pathlib import Path

from torch import nn

import dyrep
from dyrep.block import blocks
from pipeline.config.model import Structured
from pipeline.display.errors import UserError
from pipeline.records import disk, rundir

KEY = "method.structure"


def apply(network: nn.Module, method: Structured) -> None:
    """Add the branches that `method.structure` describes to a network, with random weights.

    Raises:
        UserError: the file is missing, has changed, or belongs to another network.
    """
    path = Path(method.structure)
    try:
        if method.structure_sha256 not in (None, disk.sha256(path)):
            raise UserError(
                f"{KEY}={path} has changed since the run was frozen; restore it, or "
                "choose another name= to train from the start"
            )
        dyrep.apply_structure(network, rundir.read_json(path))
    except OSError as error:
        raise UserError(f"{KEY}={path} cannot be read ({error.strerror}); restore it") from None
    except ValueError as error:
        raise UserError(
            f"{KEY}={path} cannot be put on this network: {error}; choose the network of that run"
        ) from None
    for name, block in blocks(network).items():
        if not block.kernel.requires_grad:
            raise UserError(f"{KEY} has branches on {name}, which model.freeze keeps; match less")


def log_line(network: nn.Module, method: Structured) -> str:
    """Return a line for the log about the added branches."""
    count = len(blocks(network))
    what = f"{count} block{'s' * (count != 1)} of branches"
    return f"structure: {what} with random weights, as in {method.structure}"
