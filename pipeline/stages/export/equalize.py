"""Equalize channels across layers, so that they are similar in size (Nagel et al., 2019).

The channels of a fused kernel can differ by orders of magnitude, and int8 has one scale for all
channels of an activation, so small channels vanish. If only a ReLU or a pooling is between two
layers, a factor per channel can move from the first to the second: ReLU(s x) = s ReLU(x).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypedDict

import torch
from torch import Tensor, nn

ATEN = torch.ops.aten
LAYERS = (ATEN.conv2d.default, ATEN.linear.default)
# f(s x) = s f(x) for s > 0, channel by channel
HOMOGENEOUS = (
    ATEN.relu.default, ATEN.relu_.default, ATEN.max_pool2d.default, ATEN.avg_pool2d.default,
    ATEN.adaptive_avg_pool2d.default, ATEN.mean.dim, ATEN.flatten.using_ints,
    ATEN.dropout.default,
)  # fmt: skip
PASSES = 20  # passes over all pairs; each changes the ranges of neighbouring pairs


@torch.no_grad()
def equalized(network: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy that computes the same, with equalized channels where possible.

    Args:
        network: in eval mode, with folded batch norms; no factor can move past a batch norm.
        images: a batch of two or more; only its shape matters.
    """
    equal = copy.deepcopy(network)
    pairs = list(_pairs(equal, images))
    for _ in range(PASSES):
        for first, second in pairs:
            _equalize(first, second)
    return equal


def _pairs(network: nn.Module, images: Tensor) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield pairs of layers with only homogeneous functions in between."""
    program = torch.export.export(network, (images,))
    names = program.graph_signature.inputs_to_parameters

    def layer(node: torch.fx.Node) -> nn.Module | None:
        weight = node.args[1]
        assert isinstance(weight, torch.fx.Node)
        if len(weight.users) > 1:  # used in several places
            return None
        return network.get_submodule(names[weight.name].rpartition(".")[0])

    for node in program.graph.nodes:
        follower = _only_reader(node) if node.target in LAYERS else None
        while follower is not None and follower.target in HOMOGENEOUS:
            follower = _only_reader(follower)
        if follower is not None and follower.target in LAYERS:
            first, second = layer(node), layer(follower)
            if first and second and _fit(first, second):
                yield first, second


def _only_reader(node: torch.fx.Node) -> torch.fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _fit(first: nn.Module, second: nn.Module) -> bool:
    """Whether the output channels of the first layer are the input channels of the second."""
    if isinstance(second, nn.Conv2d) and second.groups not in (1, second.in_channels):
        return False
    return _reading(second).shape[0] == _weight(first).shape[0]


def _equalize(first: nn.Module, second: nn.Module) -> None:
    """Equalize the largest weights of both layers in each channel between them."""
    reading, writing = _reading(second), _weight(first)
    sent = writing.abs().flatten(1).amax(1)
    read = reading.abs().flatten(1).amax(1)
    factor = torch.where((sent > 0) & (read > 0), (sent / read).sqrt(), torch.ones_like(sent))
    writing.div_(_along(factor, writing))
    bias = first.bias
    if isinstance(bias, Tensor):
        bias.div_(factor)
    reading.mul_(_along(factor, reading))


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def _reading(layer: nn.Module) -> Tensor:
    """Return a view of a weight whose first axis is the input channel."""
    weight = _weight(layer)
    depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
    return weight if depthwise else weight.transpose(0, 1)


def _along(factor: Tensor, weight: Tensor) -> Tensor:
    return factor.reshape(-1, *[1] * (weight.ndim - 1))


class WeightRange(TypedDict):
    """The largest weight of a conv, and the spread of its output channels.

    `spread` is the largest weight divided by the median of the channels' largest weights. This is
    the factor of precision that the median channel loses with one scale for the whole kernel.
    """

    layer: str
    largest: float
    spread: float


def weight_ranges(network: nn.Module) -> list[WeightRange]:
    """Return the range of the weights of each conv, in the order of the network."""
    found: list[WeightRange] = []
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            peaks = module.weight.detach().abs().amax(dim=(1, 2, 3))
            median = peaks.median().clamp(min=torch.finfo(peaks.dtype).tiny)
            largest = peaks.max()
            found.append(
                {"layer": path, "largest": largest.item(), "spread": (largest / median).item()}
            )
    return found
