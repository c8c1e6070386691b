"""Initialize convolutions at the drawn kernel plus the identity.

    W = strength I + W_0

I copies each channel. This equals an identity branch of this strength that is folded into the
kernel before the first step, so it costs nothing at any time. A deep network without skip
connections passes its signal through every kernel, and trains better from this start; with skip
connections there is little to gain (`benchmarks.growth_study`). DiracNets (Zagoruyko and Komodakis,
arXiv 1706.00388) keep diag(a) I and W apart during training; here the kernel is one parameter from
the start.
"""

from __future__ import annotations

import torch
from torch import nn

from dyrep import algebra, eligible, surgery
from dyrep.block import blocks, fitting
from dyrep.geometry import Geometry


@torch.no_grad()
def identity_start(model: nn.Module, strength: float = 1.0) -> list[str]:
    """Add the identity to the kernel of each conv that could take an identity branch.

    Call it before the first step and before a copy for averaging is made, because it changes the
    function of the network. Convs that `expand` would leave alone (shared, parametrized, frozen, …)
    keep their kernels, and so do 1x1 convs.

    Args:
        model: A fresh network; its kernels are changed in place.
        strength: Factor of the identity, for example 1.0.

    Returns:
        The paths of the convs.

    Raises:
        ValueError: the model has blocks, or is wrapped.
    """
    surgery.refuse_wrapped(model)
    if blocks(model):
        raise ValueError("identity_start is for a fresh network; this one has blocks already")
    unfit = eligible.unfit_convs(model)
    started = []
    for path, conv in eligible.convs(model):
        if path not in unfit and fitting(conv, ["identity"]):
            geometry = Geometry.of(conv)
            identity = algebra.identity(geometry.out_channels, geometry.groups, like=conv.weight)
            conv.weight += strength * algebra.embed(identity, geometry.kernel_size, geometry.centre)
            started.append(path)
    return started
