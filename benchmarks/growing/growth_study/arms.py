"""Define the arms: how each changes the plain network, at the start and during training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import dyrep
from benchmarks import PUBLISHED_BRANCHES

WARM_UP = 0.15  # share of the budget in which the learning rate rises, and ours does not watch
AFTER_WARM_UP = (0.25, 0.375, 0.5)
FIRST_HALF = tuple(n / 20 for n in range(1, 11))  # shares of the budget
CALIBRATION = 4  # batches for new norms; 20 as published, in trainings a hundred times as long
AS_PUBLISHED = tuple(n / 12 for n in range(1, 11))  # up to 5/6, where the published runs end it


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Args:
        what: A description for the table.
        identity: Whether the identity is added to kernels at the start.
        branches: Branches of every conv from the start; none if empty.
        form: The form of these branches.
        by: The class that changes the network during training.
        evolves: Settings of that class; None if the network does not change.
        at: Shares of the budget after which the network changes.
        shown: Number of batches that the class gets for a change.
        watches_from: Share of the budget from which it watches the gradients.
        budget: Cost of the training, as a multiple of that of plain.
        by_steps: Whether to make as many steps as plain instead, whatever they cost.
        like: The arm whose final structure, of the same seed, this arm has from the start.
    """

    what: str
    identity: bool = False
    branches: tuple[str, ...] = ()
    form: str = "batchnorm"
    by: type[dyrep.DyRep] = dyrep.DyRep
    evolves: Mapping[str, Any] | None = None
    at: tuple[float, ...] = ()
    shown: int = 0
    watches_from: float = 0.0
    budget: float = 1.0
    by_steps: bool = False
    like: str | None = None


LINEAR = {"form": "linear", "branches": PUBLISHED_BRANCHES}
GROWER: dict[str, Any] = {
    "by": dyrep.Grower, "evolves": {}, "at": AFTER_WARM_UP, "shown": 1, "watches_from": WARM_UP
}  # fmt: skip
DYREP = {"saliency": "synflow"}  # and the library's defaults, which are the published ones
ARMS = {
    "plain": Arm("plain"),
    "plain_identity": Arm("plain, started at kernel + identity", identity=True),
    "ours": Arm("ours: started at kernel + identity, then grown", identity=True, **GROWER),
    "dbb": Arm("DBB", branches=dyrep.DBB_BRANCHES),
    "linear": Arm("linear, all branches from the start", **LINEAR),
    "linear_steps": Arm("linear, all branches, as many steps", **LINEAR, by_steps=True),
    "plain_x2": Arm("plain, twice the cost", budget=2),
    "orepa": Arm("OREPA", branches=dyrep.OREPA_BRANCHES, form="linear"),
    "linear_cut": Arm("linear from the start, then cut", **LINEAR,
                      evolves={**LINEAR, "grow": 0}, at=FIRST_HALF),
    "ours_plain_start": Arm("ours without the identity", **GROWER),
    "ours_random": Arm("ours with random choice", identity=True,
                       **{**GROWER, "evolves": {"choose": "random"}}),
    "ours_structure": Arm("our final structure from the start", like="ours"),
    "repvgg": Arm("RepVGG", branches=dyrep.REPVGG_BRANCHES),
    "dyrep_linear": Arm("DyRep with linear blocks, early",
                        evolves={**LINEAR, "saliency": "gain"}, at=FIRST_HALF),
    "dyrep": Arm("DyRep as published", evolves=DYREP, at=AS_PUBLISHED, shown=CALIBRATION),
    "dyrep_budget": Arm("DyRep as published, at most 1.5 times the FLOPs",
                        evolves={**DYREP, "max_cost": 1.5}, at=AS_PUBLISHED, shown=CALIBRATION),
    "plain_x3": Arm("plain, three times the cost", budget=3),
    "dbb_steps": Arm("DBB, as many steps", branches=dyrep.DBB_BRANCHES, by_steps=True),
}  # fmt: skip
FIRST = ("plain", "plain_identity", "ours")  # these are informative before the others are done


def prepare(model: nn.Module, arm: Arm, seed: int, structure: dict | None) -> None:
    """Add the arm's initial identity and branches to a new plain network.

    Args:
        model: The plain network; its drawn kernels stay, plus the identity if the arm adds it.
        arm: The arm.
        seed: Seed of the weights of branches.
        structure: The final structure of the arm that this one is like; None if there is none.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if arm.identity:
            dyrep.identity_start(model)
        if structure is not None:
            _build_alike(model, structure)
        elif arm.branches:
            # branches with norms replace the norm behind a conv, as published
            absorb = torch.zeros(2, 1, 28, 28) if arm.form == "batchnorm" else None
            dyrep.expand(model, None, arm.branches, absorb, arm.form)


def _build_alike(model: nn.Module, structure: dict) -> None:
    """Give a network a structure, with the strengths of blocks that exist from the start."""
    blocks = [{**block, "fixed": False} for block in structure["blocks"]]
    dyrep.apply_structure(model, {**structure, "blocks": blocks})


def evolver(model: nn.Module, optimizer: Optimizer | None, arm: Arm, seed: int) -> dyrep.DyRep:
    """Return the object that grows and cuts the network of an evolving arm."""
    assert arm.evolves is not None
    # the default branches are not in `evolves`, because recorded prices are found by its digest
    settings = {"branches": PUBLISHED_BRANCHES, **arm.evolves}
    return arm.by(model, optimizer, seed=seed, **settings)
