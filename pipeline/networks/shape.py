"""Check that a user's network can be copied, saved and built again, as the stages require."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.display.errors import UserError, gist
from pipeline.networks import freezing


def learn(scores: Tensor) -> None:
    """Compute gradients from the scores of a network, as a training step does.

    Raises:
        ValueError: no gradient reaches any parameter.
    """
    if not scores.requires_grad:
        raise ValueError(
            "no parameter would learn from its scores; leave out torch.no_grad(), detach(), argmax "
            "and requires_grad=False"
        )
    scores.backward(torch.ones_like(scores))


def reaches_all(network: nn.Module, frozen: list[str]) -> None:
    """Refuse a network, after `learn`, that DistributedDataParallel would stop at its second step.

    Args:
        network: the network whose scores `learn` got.
        frozen: globs of parameters that do not learn.

    Raises:
        ValueError: a parameter does not contribute to the scores.
    """
    parameters = dict(network.named_parameters())
    unused = [n for n, p in parameters.items() if p.requires_grad and p.grad is None]
    if unused:
        still = {name for glob in frozen for name in freezing.matching(glob, parameters)}
        unused = [name for name in unused if name not in still]
    if unused:
        raise ValueError(
            f"{len(unused)} of its parameters take no part in its scores ({unused[0]}), which "
            "several processes cannot train together; leave such layers out, freeze them with "
            "model.freeze, or train in one process"
        )


def check(network: nn.Module, again: nn.Module, target: str) -> None:
    """Refuse a network that would make a later stage fail.

    Args:
        network: returned by the target.
        again: the network that a second call returned.
        target: name of the target, for messages.

    Raises:
        UserError: the message names the problem and the cure.
    """
    text = f"model.target={target} returns a network"
    try:
        copy.deepcopy(network)
    except Exception as error:  # a user's module may raise anything
        raise UserError(
            f"{text} that cannot be copied ({gist(error)}), as averaging and fusing do; keep "
            "locks, files and generators out of it"
        ) from None
    state = network.state_dict()
    odd = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if odd:
        raise UserError(f"{text} with {odd!a} in its state, which is not a tensor; leave that out")
    if pair := _shared(network):
        raise UserError(
            f"{text} in which {pair[0]} and {pair[1]} are one tensor, and a file of weights holds "
            "each once; give it one name, or each its own"
        )
    if _shapes(network) != _shapes(again):
        raise UserError(
            f"{text} of another structure each time; every stage builds it again, so it must "
            "follow from model.args alone"
        )


def runs(network: nn.Module, channels: int, side: int) -> bool:
    """Whether a network can be run on square images of so many channels and pixels a side."""
    try:
        with torch.no_grad():
            device = next(network.parameters()).device
            network.eval()(torch.zeros(1, channels, side, side, device=device))
    except Exception:  # a user's module may raise anything
        return False
    return True


class Drawing(TorchDispatchMode):
    """Records operations that draw random numbers, also on the meta device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.seen.append((func, *(arg for arg in args if isinstance(arg, float))))
        return func(*args, **(kwargs or {}))


def _shared(network: nn.Module) -> tuple[str, str] | None:
    """Return two names in the state dict that share one tensor."""
    known: dict[int, str] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) in known:
            return known[id(tensor)], name
        known[id(tensor)] = name
    return None


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}
