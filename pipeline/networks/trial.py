"""Try on a tiny network whether an optimizer can train, grow and resume."""

from __future__ import annotations

import copy
import random

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import dyrep
from pipeline.config.model import DyRep, Grow, Method
from pipeline.config.train import Train
from pipeline.display.errors import UserError, gist
from pipeline.networks import optimizers
from pipeline.records import packing


def attempt(train: Train, method: Method) -> None:
    """Train a few steps, grow if the method grows, and resume from a saved state.

    Raises:
        UserError: the optimizer cannot be built or used, cannot follow growth, or does not resume
            bit by bit.
    """
    on_gpu = optimizers.needs_gpu(train.optimizer) and torch.cuda.is_available()
    network = _network().to("cuda" if on_gpu else "cpu")
    name = f"train.optimizer={train.optimizer}"
    try:
        optimizer = optimizers.build(network, train)
        drawn = _generators()
        _steps(network, optimizer)
        if _generators() != drawn:
            raise UserError(
                f"{name} draws random numbers, so processes would diverge; use "
                "another, or other train.optimizer_args"
            )
    except UserError:
        raise
    except Exception as error:  # whatever is in a library
        raise UserError(
            f"{name} cannot be used here ({gist(error)}); use another, or other "
            "train.optimizer_args"
        ) from None
    if isinstance(method, DyRep | Grow):
        _grow(network, optimizer, method, name)
    _continue(network, optimizer, train, name)


def _generators() -> tuple[object, ...]:
    return random.getstate(), torch.get_rng_state().tolist()


def _network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        )  # fmt: skip


def _images(number: int, network: nn.Module) -> Tensor:
    drawn = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(number))
    return drawn.to(next(network.parameters()).device)


def _steps(network: nn.Module, optimizer: Optimizer) -> None:
    for number in range(2):
        network(_images(number, network)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def _grow(network: nn.Module, optimizer: Optimizer, method: DyRep | Grow, name: str) -> None:
    form = method.form if isinstance(method, DyRep) else "linear"
    try:
        evolver = dyrep.DyRep(network, optimizer, saliency="random", form=form)
        evolver.accumulate()
        evolver.adjust([_images(2, network)])
        _steps(network, optimizer)
    except Exception as error:  # whatever is in a library
        raise UserError(
            f"{name} cannot follow a network that grows ({gist(error)}); use another, or "
            "method=plain"
        ) from None


def _continue(network: nn.Module, optimizer: Optimizer, train: Train, name: str) -> None:
    """Compare a continued with a resumed optimizer, under different random seeds."""
    twin = copy.deepcopy(network)
    try:
        other = optimizers.build(twin, train)
        other.load_state_dict(packing.loads(packing.dumps(optimizer.state_dict())))
        with torch.random.fork_rng(devices=[]):
            for seed, (one, its) in enumerate(((network, optimizer), (twin, other))):
                torch.manual_seed(seed)
                _steps(one, its)
    except Exception as error:  # whatever is in a library
        raise UserError(f"{name} cannot be resumed ({gist(error)}); use another") from None
    pairs = zip(network.parameters(), twin.parameters(), strict=True)
    if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs):
        raise UserError(
            f"{name} gives other weights after it is resumed: its state is incomplete, or it draws "
            "random numbers; use another, or other train.optimizer_args"
        )
