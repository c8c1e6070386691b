"""RepBlock: a sum of branches standing where a convolution stood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dyrep import branches, surgery
from dyrep.branches import Branch, Norm, WindowConv
from dyrep.geometry import Geometry


class AbsorbedNorm(nn.Identity):
    """Stands where the batch norm was whose work the norms of a static block do."""


class FixedNorm(nn.BatchNorm2d):
    """A batch norm that keeps its statistics in training too.

    That of kxk in a grown conv without batch norm behind it: such a network did not depend on the
    other images of a batch, and its output would show it if it did.
    """

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)


class RepBlock(nn.Module):
    """A sum of branches over one input.

    The kxk branch takes over weight and bias of the conv, the bias as that of its norm: the very
    same `Parameter`s, so an optimizer keeps its momenta. The conv inside a branch may itself become
    a block (recursive growth).

    Args:
        conv: The conv it replaces.
        names: Branches; kxk is always among them.
        norm: Makes a batch norm for a number of channels.
        fixed: The norm of kxk keeps its statistics; see `FixedNorm`.
    """

    def __init__(
        self, conv: nn.Conv2d, names: Sequence[str], norm: Norm, fixed: bool = False
    ) -> None:
        super().__init__()
        self.geometry = Geometry.of(conv)
        self.had_bias = conv.bias is not None and not getattr(conv, "bias_was_added", False)
        ordered = [name for name in branches.ALL_BRANCHES if name == "kxk" or name in names]
        self.branches = nn.ModuleDict(
            {name: branches.build(name, self.geometry, norm) for name in ordered}
        )
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"):
            setattr(self, name, getattr(conv, name))  # for a network that asks its layers
        self.fixed = fixed
        if fixed:
            self.kxk.norm = FixedNorm(conv.out_channels)
        self.to(conv.weight)  # dtype and device
        self.requires_grad_(conv.weight.requires_grad)
        inner = self.kxk.conv
        assert isinstance(inner, nn.Conv2d)
        inner.weight = conv.weight
        if conv.bias is not None:
            self.kxk.norm.bias = conv.bias  # type: ignore[assignment]
        self.train(conv.training)

    @property
    def kxk(self) -> WindowConv:
        """The branch that carries the original kernel."""
        branch = self.branches["kxk"]
        assert isinstance(branch, WindowConv)
        return branch

    @property
    def kernel(self) -> nn.Parameter:
        """The original kernel (out, in/groups, kh, kw), which the innermost kxk branch holds.

        Not called `weight`: a network that uses the weight of a layer behind its back must fail.
        """
        conv: nn.Module = self.kxk.conv
        kernel = conv.kernel if isinstance(conv, RepBlock) else conv.weight
        assert isinstance(kernel, nn.Parameter)
        return kernel

    @property
    def names(self) -> list[str]:
        """The branches there are, in the order they are summed."""
        return list(self.branches)

    def others(self) -> list[Branch]:
        """Return the branches beside kxk."""
        found = [branch for name, branch in self.branches.items() if name != "kxk"]
        assert all(isinstance(branch, Branch) for branch in found)
        return found  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of all branches."""
        first, *rest = self.branches.values()
        total: Tensor = first(x)
        for branch in rest:
            total += branch(x)  # in place: no norm needs its output in backward
        return total

    def equivalent(self) -> tuple[Tensor, Tensor]:
        """Return kernel and bias the block amounts to in eval mode, float64."""
        first, *rest = self.branches.values()
        kernel, bias = first.equivalent()  # type: ignore[operator]
        for branch in rest:
            more, shift = branch.equivalent()  # type: ignore[operator]
            kernel, bias = kernel + more, bias + shift
        return kernel, bias

    def fuse(self) -> nn.Conv2d:
        """Return the plain conv that computes the same in eval mode.

        It has a bias if the original had one or if the folded bias is not zero.
        """
        kernel, bias = self.equivalent()
        return self.plain_conv(kernel, bias, nn.Parameter(torch.empty_like(self.kernel)))

    def plain_conv(self, kernel: Tensor, bias: Tensor, weight: nn.Parameter) -> nn.Conv2d:
        """Return a conv of this geometry that holds `kernel` in the given parameter."""
        g = self.geometry
        symmetric = all(begin == end for begin, end in g.padding)
        conv = nn.Conv2d(
            g.in_channels, g.out_channels, g.kernel_size, g.stride,
            (g.padding[0][0], g.padding[1][0]) if symmetric else "same",
            g.dilation, g.groups, self.had_bias or bool(bias.any()), g.padding_mode,
        ).to(weight)  # fmt: skip
        with torch.no_grad():
            conv.weight = weight
            conv.weight.copy_(kernel)
            if conv.bias is not None:
                conv.bias.copy_(bias)
        return conv.train(self.training)


def fitting(conv: nn.Conv2d, names: Sequence[str]) -> list[str]:
    """Return those of the branches that a conv can take.

    Raises:
        ValueError: there is no branch of that name.
    """
    unknown = sorted(set(names) - set(branches.ALL_BRANCHES))
    if unknown:
        raise ValueError(f"unknown branches {unknown}; choose from {branches.ALL_BRANCHES}")
    return [name for name in names if branches.unfit(name, Geometry.of(conv)) is None]


def place_block(model: nn.Module, path: str, names: Sequence[str], fixed: bool = False) -> RepBlock:
    """Replace the conv at `path` by a block with those of the branches it can take."""
    conv = model.get_submodule(path)
    assert isinstance(conv, nn.Conv2d)
    block = RepBlock(conv, fitting(conv, names), norm_like(model), fixed)
    weight = conv.weight  # that of a depthwise conv is contiguous either way
    if weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
        block.to(memory_format=torch.channels_last)
    surgery.replace(model, path, block)
    return block


def norm_like(model: nn.Module) -> Norm:
    """Return a maker of batch norms like those of the model: synchronised or not, its momentum."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    synchronised = any(isinstance(m, nn.SyncBatchNorm) for m in norms)
    kind: type[_BatchNorm] = nn.SyncBatchNorm if synchronised else nn.BatchNorm2d
    momentum = norms[0].momentum if norms else 0.1
    return lambda channels: kind(channels, momentum=momentum)


def blocks(model: nn.Module) -> dict[str, RepBlock]:
    """Return all blocks by path, outer before nested."""
    return {path: m for path, m in model.named_modules() if isinstance(m, RepBlock)}


def outer_blocks(model: nn.Module) -> dict[str, RepBlock]:
    """Return the blocks that are not inside another block."""
    return {path: block for path, block in blocks(model).items() if depth(model, path) == 0}


def depth(model: nn.Module, path: str) -> int:
    """Return how many blocks are around the module at `path`."""
    parts = path.split(".")
    above = (".".join(parts[:end]) for end in range(len(parts)))
    return sum(isinstance(model.get_submodule(parent), RepBlock) for parent in above)
