"""Freeze parameters by globs of their names, and the statistics of their batch norms."""

from __future__ import annotations

import fnmatch
from itertools import accumulate
from typing import Self

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.display.errors import UserError, nearest


class Frozen:
    """A batch norm that stays in eval mode and keeps its running statistics.

    Timm and Keras freeze norms in the same way. With the statistics of new images, the norm would
    compute another function although no parameter changed.
    """

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)  # type: ignore[misc]


def following(network: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms whose running statistics follow their inputs."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    return [n for n in norms if n.running_mean is not None and not isinstance(n, Frozen)]


def freeze(network: nn.Module, globs: list[str]) -> list[str]:
    """Freeze the parameters of a plain network that a glob matches, by their name or a module's.

    If all parameters of a batch norm are frozen, it keeps its statistics, too. Call this before
    branches are added: a frozen convolution gets none.

    Returns:
        Lines for the log.

    Raises:
        UserError: a glob matches nothing, or nothing is left to train.
    """
    if not globs:
        return []
    parameters = dict(network.named_parameters())
    frozen = {name for glob in globs for name in matching(glob, parameters)}
    if frozen == parameters.keys():
        raise UserError(f"model.freeze={globs} leaves nothing to train; match less")
    for name in frozen:
        parameters[name].requires_grad_(False)
    still = [norm for norm in network.modules() if _is_frozen(norm)]
    for norm in still:
        norm.__class__ = type(f"Frozen{type(norm).__name__}", (Frozen, type(norm)), {})
        norm.eval()
    values = sum(parameters[name].numel() for name in frozen)
    return [
        f"frozen: {len(frozen)} of {len(parameters)} parameters, {values:,} of "
        f"{sum(p.numel() for p in parameters.values()):,} values"
        + (f"; {_norms(len(still))}" if still else "")
    ]


def _norms(count: int) -> str:
    return (
        "1 batch norm keeps its statistics"
        if count == 1
        else f"{count} batch norms keep their statistics"
    )


def matching(glob: str, parameters: dict[str, nn.Parameter]) -> list[str]:
    """Return the names of the parameters that a glob matches, by their name or a module's.

    Raises:
        UserError: it matches none.
    """

    def known_as(name: str) -> list[str]:
        return list(accumulate(name.split("."), lambda path, key: f"{path}.{key}"))

    found = [n for n in parameters if any(fnmatch.fnmatchcase(k, glob) for k in known_as(n))]
    if not found:
        there = dict.fromkeys(path for name in parameters for path in known_as(name))
        raise UserError(
            f"model.freeze={glob} matches no parameter and no module; "
            f"{nearest(glob.strip('*.'), list(there), 'model.freeze=')}"
        )
    return found


def _is_frozen(module: nn.Module) -> bool:
    own = list(module.parameters())
    return isinstance(module, _BatchNorm) and bool(own) and not any(p.requires_grad for p in own)
