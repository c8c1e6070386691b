"""Find which convolutions of a plain network `method=` can grow, and why it cannot grow the others.

This needs no weights and no data: a network on the meta device is enough.
"""

from __future__ import annotations

from torch import nn

from dyrep.block import fitting
from dyrep.eligible import convs, unfit_convs
from pipeline.config.model import Method, Plain, Structured, added
from pipeline.display.errors import UserError

NAMED = 3  # so many convolutions are named per reason


def left_alone(model: nn.Module, method: Method) -> dict[str, str]:
    """Return the convolutions that get no branches, with the reason.

    Raises:
        UserError: no convolution gets branches, so the method would change nothing.
    """
    if isinstance(method, Plain | Structured):
        return {}
    left, known = unfit_convs(model), dict(convs(model))
    for path, conv in known.items():
        if path not in left and not fitting(conv, added(method)):
            left[path] = "it can take none of these branches"
    if not known.keys() - left.keys():
        why = "; ".join(reasons(left)) or "it has no convolution larger than 1x1"
        raise UserError(
            f"method={method.name} would change nothing of this network: {why}. "
            "Use method=plain, or another model="
        )
    return left


def reasons(left: dict[str, str]) -> list[str]:
    """Return a line per reason: the number of convolutions, and the first ones."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in left.items():
        by_reason.setdefault(reason, []).append(path)
    return [
        f"{len(paths)} convolution{'s' * (len(paths) != 1)} left alone: {reason} "
        f"({', '.join(paths[:NAMED])}{', …' if len(paths) > NAMED else ''})"
        for reason, paths in by_reason.items()
    ]
