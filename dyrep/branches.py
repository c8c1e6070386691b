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
from dyrep.recompute import conv_again, normalise_again, rebuilt

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
        seen = self.geometry.look(x, self.size, self.offset)
        z: Tensor = self.conv(seen)
        result: Tensor
        if self.size != (1, 1):
            result = self.norm(z)
            return result
        conv, source, dtype = self.conv, seen.detach(), z.dtype
        with rebuilt(z, lambda: conv_again(conv, source, dtype)):
            result = self.norm(z)
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
        inner = Inner(self.reduce, self.inner_norm, self.geometry, x)
        padded = inner.output()
        with rebuilt(padded, inner.again):
            z = self.conv(padded)
        result: Tensor = self.norm(z)
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
        result: Tensor
        if self.reduce is None:
            result = self.norm(self._average(g.pad(x, *g.padding)))
            return result
        padded = Inner(self.reduce, self.inner_norm, g, x).output()
        result = self.norm(self._average(padded))
        return result

    def _average(self, padded: Tensor) -> Tensor:
        shape = padded.shape
        with rebuilt(padded, lambda: padded.new_empty(()).expand(shape)):
            return F.avg_pool2d(padded, self.geometry.kernel_size, self.geometry.stride)

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


class Inner:
    """conv 1x1, BN, pad: how two branches begin; what backward needs of it comes from x again.

    Zero padding before a 1x1 conv and BN is padding with BN(0) after them; taken from the running
    statistics, as published. The other padding modes copy pixels, so they may as well copy later.
    """

    def __init__(self, conv: nn.Conv2d, norm: _BatchNorm, geometry: Geometry, x: Tensor) -> None:
        self.conv, self.norm, self.geometry, self.x = conv, norm, geometry, x
        self._reduced: Tensor | None = None

    def output(self) -> Tensor:
        """Return pad(BN(conv(x)))."""
        z: Tensor = self.conv(self.x)
        self.x, self._dtype = self.x.detach(), z.dtype
        with rebuilt(z, self._take_reduced):
            normalised = self.norm(z)
        self._border = self._value_of_zero()
        return self._pad(normalised)

    def again(self) -> Tensor:
        """Return the output once more, in backward; what the norm will ask for is kept."""
        self._reduced = conv_again(self.conv, self.x, self._dtype)
        return self._pad(normalise_again(self.norm, self._reduced))

    def _take_reduced(self) -> Tensor:
        z, self._reduced = self._reduced, None
        return conv_again(self.conv, self.x, self._dtype) if z is None else z

    def _value_of_zero(self) -> Tensor:
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return norm.bias - norm.running_mean * scale

    def _pad(self, x: Tensor) -> Tensor:
        g = self.geometry
        if g.padding_mode != "zeros":
            return g.pad(x, *g.padding)
        (top, bottom), (left, right) = g.padding
        if not any((top, bottom, left, right)):
            return x
        border = self._border.to(x.dtype)[:, None, None]
        batch, channels, height, _ = x.shape
        sides = [border.expand(batch, channels, height, n) for n in (left, right)]
        x = torch.cat([sides[0], x, sides[1]], dim=3)
        ends = [border.expand(batch, channels, n, x.shape[3]) for n in (top, bottom)]
        return torch.cat([ends[0], x, ends[1]], dim=2)
