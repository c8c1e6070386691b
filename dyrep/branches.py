"""The seven branches of a block: each knows its forward and the kernel and bias it amounts to.

    kxk       conv kxk, BN                              always there, carries the original weight
    1x1       conv 1x1, BN
    1x1_kxk   conv 1x1, BN, conv kxk, BN
    1x1_avg   conv 1x1, BN, average pool, BN            no 1x1 where the conv is depthwise
    1xk, kx1  conv along one axis, BN
    identity  BN                                        same shape in and out only

After Ding et al., "Diverse Branch Block", CVPR 2021, and Huang et al., CVPR 2022, section 3.
A branch maps (N, in, H, W) to (N, out, H', W') as the original conv does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dyrep import algebra
from dyrep.geometry import Geometry, Pair

ALL_BRANCHES = ("kxk", "1x1", "1x1_kxk", "1x1_avg", "1xk", "kx1", "identity")
Norm = Callable[[int], _BatchNorm]


class HasEquivalent(Protocol):
    """Something linear in eval mode."""

    def equivalent(self) -> tuple[Tensor, Tensor]:
        """Return kernel (out, in/groups, kh, kw) and bias (out,) in float64."""


class Branch(nn.Module):
    """A path through a block; `norm` is the batch norm that ends it."""

    norm: _BatchNorm

    def equivalent(self) -> tuple[Tensor, Tensor]:
        """Return kernel (out, in/groups, kh, kw) and bias (out,) in float64, for eval mode."""
        raise NotImplementedError


class WindowConv(Branch):
    """conv, BN: kxk, 1x1, 1xk and kx1, by the size of the window and its place in the kernel."""

    def __init__(self, geometry: Geometry, size: Pair, offset: Pair, norm: Norm) -> None:
        super().__init__()
        self.geometry, self.size, self.offset = geometry, size, offset
        self.conv: nn.Module = geometry.conv(size, offset)
        self.norm = norm(geometry.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return BN(conv(window of x))."""
        result: Tensor = self.norm(self.conv(self.geometry.look(x, self.size, self.offset)))
        return result

    def equivalent(self) -> tuple[Tensor, Tensor]:
        kernel, bias = conv_equivalent(self.conv)
        kernel = algebra.embed(kernel, self.geometry.kernel_size, self.offset)
        return algebra.then_affine(kernel, bias, *affine(self.norm))


class OneByOneKxK(Branch):
    """conv 1x1, BN, conv kxk, BN."""

    def __init__(self, geometry: Geometry, norm: Norm) -> None:
        super().__init__()
        g = geometry
        self.geometry = g
        self.reduce = nn.Conv2d(g.in_channels, g.in_channels, 1, groups=g.groups, bias=False)
        self.inner_norm = norm(g.in_channels)
        self.conv: nn.Module = nn.Conv2d(
            g.in_channels, g.out_channels, g.kernel_size, g.stride, 0, g.dilation, g.groups,
            bias=False,
        )  # fmt: skip
        self.norm = norm(g.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return BN(conv(pad(BN(conv1x1(x)))))."""
        inner = pad_normalised(self.inner_norm(self.reduce(x)), self.inner_norm, self.geometry)
        result: Tensor = self.norm(self.conv(inner))
        return result

    def equivalent(self) -> tuple[Tensor, Tensor]:
        first = algebra.then_affine(*conv_equivalent(self.reduce), *affine(self.inner_norm))
        merged = algebra.chain(*first, *conv_equivalent(self.conv), self.geometry.groups)
        return algebra.then_affine(*merged, *affine(self.norm))


class OneByOneAverage(Branch):
    """conv 1x1, BN, average pool, BN; average pool, BN where the conv is depthwise."""

    def __init__(self, geometry: Geometry, norm: Norm) -> None:
        super().__init__()
        g = geometry
        self.geometry = g
        self.norm = norm(g.out_channels)
        self.reduce: nn.Module | None = None
        if not g.in_channels == g.out_channels == g.groups:
            self.reduce = nn.Conv2d(g.in_channels, g.out_channels, 1, groups=g.groups, bias=False)
            self.inner_norm = norm(g.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return BN(average(pad(BN(conv1x1(x)))))."""
        g = self.geometry
        if self.reduce is None:
            inner = g.pad(x, *g.padding)
        else:
            inner = pad_normalised(self.inner_norm(self.reduce(x)), self.inner_norm, g)
        result: Tensor = self.norm(F.avg_pool2d(inner, g.kernel_size, g.stride))
        return result

    def equivalent(self) -> tuple[Tensor, Tensor]:
        g = self.geometry
        if self.reduce is None:
            kernel = algebra.identity(g.out_channels, g.groups, like=affine(self.norm)[0])
            bias = kernel.new_zeros(g.out_channels)
        else:
            kernel, bias = algebra.then_affine(
                *conv_equivalent(self.reduce), *affine(self.inner_norm)
            )
        return algebra.then_affine(algebra.average(kernel, g.kernel_size), bias, *affine(self.norm))


class Identity(Branch):
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


def build(name: str, geometry: Geometry, norm: Norm) -> Branch:
    """Return a fresh branch by its name."""
    (height, width), (row, column) = geometry.kernel_size, geometry.centre
    windows: dict[str, tuple[Pair, Pair]] = {
        "kxk": ((height, width), (0, 0)),
        "1x1": ((1, 1), (row, column)),
        "1xk": ((1, width), (row, 0)),
        "kx1": ((height, 1), (0, column)),
    }
    if name in windows:
        return WindowConv(geometry, *windows[name], norm)
    return {"1x1_kxk": OneByOneKxK, "1x1_avg": OneByOneAverage, "identity": Identity}[name](
        geometry, norm
    )


def unfit(name: str, geometry: Geometry) -> str | None:
    """Return why a conv of this geometry cannot take a branch, or None if it can."""
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


def pad_normalised(x: Tensor, norm: _BatchNorm, geometry: Geometry) -> Tensor:
    """Pad the output of a batch norm with what it makes of the padding of its input.

    Zero padding before a 1x1 conv and BN is padding with BN(0) after them; taken from the running
    statistics, as published. The other padding modes copy pixels, so they may as well copy later.
    """
    if geometry.padding_mode != "zeros":
        return geometry.pad(x, *geometry.padding)
    (top, bottom), (left, right) = geometry.padding
    if not any((top, bottom, left, right)):
        return x
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    border = (norm.bias - norm.running_mean * scale).to(x.dtype)[:, None, None]
    return F.pad(x - border, (left, right, top, bottom)) + border
