"""What every block is: a sum of branches with the shape of the conv whose place it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dyrep import branches
from dyrep.branches import Branch
from dyrep.geometry import Geometry

Form = Literal["batchnorm", "linear"]


class RepBlock(nn.Module):
    """A sum of branches over one input; how it is computed is up to its `form`.

    The kxk branch takes over the weight of the conv: the very same `Parameter`, so an optimizer
    keeps its momentum. The conv inside a branch may itself become a block (recursive growth).

    Args:
        conv: The conv it replaces.
        parts: Branches by name; kxk is always among them.
        fixed: The kxk branch hands on what its conv gives, without learning how much of it.

    `own` names branches that belong to the network itself, as those of RepVGG do: they are never
    cut, and what grows inside such a block grows as deep as in a network without it. `widen` says
    how many times the channels that come in its 1x1_kxk branch has inside.
    """

    form: ClassVar[Form]
    own: tuple[str, ...] = ()
    widen: int = 1

    def __init__(self, conv: nn.Conv2d, parts: Mapping[str, Branch], fixed: bool) -> None:
        super().__init__()
        self.geometry = Geometry.of(conv)
        self.had_bias = conv.bias is not None and not getattr(conv, "bias_was_added", False)
        self.branches = nn.ModuleDict(parts)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"):
            setattr(self, name, getattr(conv, name))  # for a network that asks its layers
        self.fixed = fixed
        self.to(conv.weight)  # dtype and device
        self.requires_grad_(conv.weight.requires_grad)
        self.train(conv.training)

    @property
    def names(self) -> list[str]:
        """The branches there are, in the order they are summed."""
        return list(self.branches)

    @property
    def inner(self) -> nn.Module:
        """What is in the kxk branch: the conv, or the block it became."""
        inner = self.branches["kxk"].conv
        assert isinstance(inner, nn.Module)
        return inner

    @property
    def kernel(self) -> nn.Parameter:
        """The original kernel (out, in/groups, kh, kw), which the innermost kxk branch holds.

        Not called `weight`: a network that uses the weight of a layer behind its back must fail.
        """
        inner = self.inner
        kernel = inner.kernel if isinstance(inner, RepBlock) else inner.weight
        assert isinstance(kernel, nn.Parameter)
        return kernel

    def others(self) -> Sequence[Branch]:
        """Return the branches beside kxk."""
        return [branch for name, branch in self.branches.items() if name != "kxk"]  # type: ignore[misc]

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

    def absorb(self, kernel: Tensor, bias: Tensor) -> None:
        """Let the kxk branch compute this kernel and this bias as well, in eval mode."""
        raise NotImplementedError

    def back_to_conv(self, kernel: Tensor, bias: Tensor) -> nn.Conv2d:
        """Return the conv the block came from, with these values in its very parameters."""
        raise NotImplementedError


def in_order(names: Sequence[str]) -> list[str]:
    """Return kxk and those of the names that are branches, in the order they are summed."""
    known = (*branches.ALL_BRANCHES, *branches.LINEAR_ONLY)
    return [name for name in known if name == "kxk" or name in names]
