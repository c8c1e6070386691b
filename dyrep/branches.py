"""Define the branches of a block, each with its forward and its equivalent kernel and bias.

    kxk       conv kxk, BN                              always there, carries the original weight
    1x1       conv 1x1, BN
    1x1_kxk   conv 1x1, BN, conv kxk, BN
    1x1_avg   conv 1x1, BN, average pool, BN            no 1x1 where the conv is depthwise
    1xk, kx1  conv along one axis, BN
    identity  BN                                        same shape in and out only

After Ding et al., "Diverse Branch Block", CVPR 2021, and Huang et al., CVPR 2022.
A branch maps (N, in, H, W) to (N, out, H', W') as the original conv does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dyrep import algebra
from dyrep.geometry import Geometry, Pair
from dyrep.inner import Inner
from dyrep.recompute import again, rebuilt

ALL_BRANCHES = ("kxk", "1x1", "1x1_kxk", "1x1_avg", "1xk", "kx1", "identity")
LINEAR_ONLY = ("1x1_prior", "dw_1x1")  # OREPA's branches, in `dyrep.linear_branches`
Norm = Callable[[int], _BatchNorm]


class Branch(nn.Module):
    """A path through a block, of either form."""

    def equivalent(self) -> tuple[Tensor, Tensor]:
        """Return kernel (out, in/groups, kh, kw) and bias (out,) in float64, for eval mode."""
        raise NotImplementedError


class NormBranch(Branch):
    """A path that ends in a batch norm, `norm`; one before the last layer is its `inner_norm`."""

    norm: _BatchNorm


class WindowConv(NormBranch):
    """conv, BN: kxk, 1x1, 1xk and kx1, by the size of the window and its place in the kernel."""

    def __init__(self, geometry: Geometry, size: Pair, offset: Pair, norm: Norm) -> None:
        super().__init__()
        self.geometry, self.size, self.offset = geometry, size, offset
        self.conv: nn.Module = geometry.conv(size, offset)
        self.norm = norm(geometry.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return BN(conv(window of x))."""
        seen = self.geometry.window(x, self.size, self.offset)
        z: Tensor = self.conv(seen)
        with rebuilt(z, again(self.conv, seen, z)):
            result: Tensor = self.norm(z)
        return result

    def equivalent(self) -> tuple[Tensor, Tensor]:
        kernel, bias = conv_equivalent(self.conv)
        kernel = algebra.embed(kernel, self.geometry.kernel_size, self.offset)
        return algebra.then_affine(kernel, bias, *affine(self.norm))


class OneByOneKxK(NormBranch):
    """conv 1x1, BN, conv kxk, BN, with `widen` times the input channels in between."""

    def __init__(self, geometry: Geometry, norm: Norm, widen: int = 1) -> None:
        super().__init__()
        g = geometry
        self.geometry = g
        inside = replace(g, in_channels=widen * g.in_channels)
        self.reduce = nn.Conv2d(g.in_channels, inside.in_channels, 1, groups=g.groups, bias=False)
        self.inner_norm = norm(inside.in_channels)
        self.conv: nn.Module = inside.conv(g.kernel_size, (0, 0))
        self.norm = norm(g.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return BN(conv(BN(conv1x1(x)) less its border))."""
        inner = Inner(self.reduce, self.inner_norm, x)
        middle = inner.output()
        seen = self.geometry.window(middle, self.geometry.kernel_size, (0, 0))
        with rebuilt(middle, inner.again) if isinstance(self.conv, nn.Conv2d) else nullcontext():
            z = self.conv(seen)
        result: Tensor = self.norm(z)
        return result

    def equivalent(self) -> tuple[Tensor, Tensor]:
        first = inner_equivalent(self.reduce, self.inner_norm)
        kernel, bias = conv_equivalent(self.conv)
        kernel = algebra.chain(first, kernel, self.geometry.groups)
        return algebra.then_affine(kernel, bias, *affine(self.norm))


class OneByOneAverage(NormBranch):
    """conv 1x1, BN, average pool, BN; average pool, BN where the conv is depthwise."""

    def __init__(self, geometry: Geometry, norm: Norm) -> None:
        super().__init__()
        g = geometry
        self.geometry = g
        self.norm = norm(g.out_channels)
        self.reduce: nn.Module | None = None
        if not g.depthwise:
            self.reduce = nn.Conv2d(g.in_channels, g.out_channels, 1, groups=g.groups, bias=False)
            self.inner_norm = norm(g.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return BN(average(BN(conv1x1(x)) less its border))."""
        average = self.geometry.average
        result: Tensor
        if self.reduce is None:
            result = self.norm(average(x))
            return result
        inner = Inner(self.reduce, self.inner_norm, x)
        middle = inner.output()
        shape, nothing = middle.shape, middle.new_empty(())
        with rebuilt(middle, lambda: nothing.expand(shape)):  # pooling only needs the shape
            pooled = average(middle)
        with rebuilt(pooled, lambda: average(inner.again())):
            result = self.norm(pooled)
        return result

    def equivalent(self) -> tuple[Tensor, Tensor]:
        g = self.geometry
        if self.reduce is None:
            kernel = algebra.identity(g.out_channels, g.groups, like=affine(self.norm)[0])
        else:
            kernel = inner_equivalent(self.reduce, self.inner_norm)
        kernel = algebra.average(kernel, g.kernel_size)
        return algebra.then_affine(kernel, kernel.new_zeros(len(kernel)), *affine(self.norm))


class Identity(NormBranch):
    """BN of the input itself."""

    def __init__(self, geometry: Geometry, norm: Norm) -> None:
        super().__init__()
        self.geometry = geometry
        self.norm = norm(geometry.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return BN(x), cropped or padded to the size of the conv's output."""
        height, width = self.geometry.margins((1, 1), self.geometry.centre)
        if any(height + width):
            x = self.geometry.pad(x, height, width)
        result: Tensor = self.norm(x)
        return result

    def equivalent(self) -> tuple[Tensor, Tensor]:
        g, (scale, shift) = self.geometry, affine(self.norm)
        kernel = algebra.identity(g.out_channels, g.groups, like=scale)
        kernel = algebra.embed(kernel, g.kernel_size, g.centre)
        return algebra.then_affine(kernel, torch.zeros_like(shift), scale, shift)


def windows(geometry: Geometry) -> dict[str, tuple[Pair, Pair]]:
    """Return size and offset of the window of the kernel that each branch covers, by name."""
    (height, width), (row, column) = geometry.kernel_size, geometry.centre
    return {
        "kxk": ((height, width), (0, 0)),
        "1x1": ((1, 1), (row, column)),
        "1xk": ((1, width), (row, 0)),
        "kx1": ((height, 1), (0, column)),
    }


def build(name: str, geometry: Geometry, norm: Norm, widen: int = 1) -> NormBranch:
    """Return a fresh branch by its name; `widen` as in `OneByOneKxK`."""
    known = windows(geometry)
    if name in known:
        return WindowConv(geometry, *known[name], norm)
    if name == "1x1_kxk":
        return OneByOneKxK(geometry, norm, widen)
    return {"1x1_avg": OneByOneAverage, "identity": Identity}[name](geometry, norm)


def unfit(name: str, geometry: Geometry) -> str | None:
    """Return the reason why a conv of this geometry cannot take a branch; None if it can."""
    height, width = geometry.kernel_size
    if name == "identity" and geometry.in_channels != geometry.out_channels:
        return "identity needs as many outputs as inputs"
    if name == "identity" and geometry.stride != (1, 1):
        return "identity needs stride 1"
    if name == "1x1_avg" and geometry.dilation != (1, 1):
        return "average pooling has no dilation"
    if name == "1xk" and height == 1:
        return "the kernel is 1xk already"
    if name == "kx1" and width == 1:
        return "the kernel is kx1 already"
    return None


def conv_equivalent(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Return kernel and bias of a conv, or of the block that took its place, in float64."""
    if not isinstance(conv, nn.Conv2d):
        kernel, bias = conv.equivalent()  # type: ignore[operator]
        return kernel, bias
    kernel = conv.weight.detach().double()
    bias = kernel.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().double()
    return kernel, bias


def affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return scale and shift (channels,) of a batch norm in eval mode, in float64."""
    mean, var, gamma, beta = (
        None if t is None else t.detach().double()
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    assert mean is not None and var is not None, "blocks are built with running statistics"
    return algebra.scale_and_shift(mean, var, gamma, beta, norm.eps)


def inner_equivalent(conv: nn.Module, norm: _BatchNorm) -> Tensor:
    """Return the kernel of conv 1x1, BN, minus its border; without the border, no bias is left."""
    kernel, bias = conv_equivalent(conv)
    scale, _ = affine(norm)
    return algebra.then_affine(kernel, bias, scale, torch.zeros_like(scale))[0]


def inner_norm(branch: nn.Module) -> _BatchNorm | None:
    """Return the batch norm before the last layer of a branch; None if it has no such norm."""
    return getattr(branch, "inner_norm", None)


def draw(branch: nn.Module, generator: Generator) -> None:
    """Draw conv weights as published: N(0, 2 / fan_out)."""
    for module in branch.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            weight = torch.empty(module.weight.shape).normal_(
                0, (2 * module.groups / fan_out) ** 0.5, generator=generator
            )
            module.weight.copy_(weight)
