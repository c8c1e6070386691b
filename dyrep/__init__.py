"""DyRep: grow branches onto convolutions while a network trains, cut the useless, fold the rest.

    evolver = dyrep.DyRep(model, optimizer)
    for epoch in range(epochs):
        for x, y in loader:
            loss(model(x), y).backward()
            evolver.accumulate()
            optimizer.step(); optimizer.zero_grad()
        if evolver.due(epoch):
            evolver.adjust(calibration=batches)
    deployed = dyrep.fuse(model)

After Huang et al., "DyRep: Bootstrapping Training with Dynamic Re-parameterization", CVPR 2022.
"""

from pathlib import Path

from dyrep.branches import ALL_BRANCHES
from dyrep.cost import Cost, cost
from dyrep.events import Event
from dyrep.evolution import DyRep
from dyrep.expansion import (
    ACB_BRANCHES,
    DBB_BRANCHES,
    OREPA_BRANCHES,
    REPVGG_BRANCHES,
    Expansion,
    expand,
)
from dyrep.fusion import fuse
from dyrep.grower import Grower
from dyrep.linear import scales
from dyrep.proof import FusionError
from dyrep.pruning import branch_weights, cut
from dyrep.published import load_published
from dyrep.start import identity_start
from dyrep.structure import apply_structure, structure
from dyrep.surgery import rewrap

__version__ = Path(__file__).with_name("VERSION").read_text(encoding="utf-8").strip()

__all__ = [
    "ACB_BRANCHES",
    "ALL_BRANCHES",
    "DBB_BRANCHES",
    "OREPA_BRANCHES",
    "REPVGG_BRANCHES",
    "Cost",
    "DyRep",
    "Event",
    "Expansion",
    "FusionError",
    "Grower",
    "apply_structure",
    "branch_weights",
    "cost",
    "cut",
    "expand",
    "fuse",
    "identity_start",
    "load_published",
    "rewrap",
    "scales",
    "structure",
]
