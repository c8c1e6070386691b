"""Define what all blocks share: a block is a sum of branches in the place of a conv."""

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
    """A sum of branches over one input; subclasses compute it, one per `form`.

    The kxk branch takes over the weight of the conv: the very same `Parameter`, so an optimizer
    keeps its momentum. The conv inside a branch may itself become a block (recursive growth).

    Args:
        conv: The conv that the block replaces.
        named: Branches by name; kxk is always among them.
        fixed: Whether the kxk branch is tied to its conv: with batch norms, its norm keeps its
            statistics; in a linear block, it has no strength.

    `own` names branches that belong to the network itself, as those of RepVGG do. They are never
    cut, and such a block does not count for the depth to which branches may grow inside it. `widen`
    is the number of channels inside the 1x1_kxk branch, as a multiple of its input channels.
    """

    form: ClassVar[Form]
    own: tuple[str, ...] = ()
    widen: int = 1

    def __init__(self, conv: nn.Conv2d, named: Mapping[str, Branch], fixed: bool) -> None:
        super().__init__()
        self.geometry = Geometry.of(conv)
        self.had_bias = conv.bias is not None and not getattr(conv, "bias_was_added", False)
        self.branches = nn.ModuleDict(named)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"):
            setattr(self, name, getattr(conv, name))  # for networks that read attributes of layers
        self.fixed = fixed
        self.to(conv.weight)  # dtype and device
        self.requires_grad_(conv.weight.requires_grad)
        self.train(conv.training)

    @property
    def names(self) -> list[str]:
        """The names of the branches, in the order in which they are summed."""
        return list(self.branches)

    @property
    def inner(self) -> nn.Module:
        """The module in the kxk branch: the conv, or the block that it became."""
        inner = self.branches["kxk"].conv
        assert isinstance(inner, nn.Module)
        return inner

    @property
    def kernel(self) -> nn.Parameter:
        """The original kernel (out, in/groups, kh, kw), which the innermost kxk branch holds.

        It is not called `weight`, so that a network fails which uses the weight of a layer without
        calling the layer.
        """
        inner = self.inner
        kernel = inner.kernel if isinstance(inner, RepBlock) else inner.weight
        assert isinstance(kernel, nn.Parameter)
        return kernel

    def others(self) -> Sequence[Branch]:
        """Return the branches beside kxk."""
        return [branch for name, branch in self.branches.items() if name != "kxk"]  # type: ignore[misc]

    def equivalent(self) -> tuple[Tensor, Tensor]:
        """Return the kernel and bias to which the block is equivalent in eval mode, float64."""
        first, *rest = self.branches.values()
        kernel, bias = first.equivalent()  # type: ignore[operator]
        for branch in rest:
            more, shift = branch.equivalent()  # type: ignore[operator]
            kernel, bias = kernel + more, bias + shift
        return kernel, bias

    def fuse(self) -> nn.Conv2d:
        """Return the plain conv that computes the same as the block in eval mode.

        The conv has a bias if the original had one or if the folded bias is not zero.
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
        """Add a kernel and a bias to those that the kxk branch computes in eval mode."""
        raise NotImplementedError

    def back_to_conv(self, kernel: Tensor, bias: Tensor) -> nn.Conv2d:
        """Return the original conv of the block, with these values in the same parameters."""
        raise NotImplementedError


def in_order(names: Sequence[str]) -> list[str]:
    """Return kxk and the names that are branches, in the order in which they are summed."""
    known = (*branches.ALL_BRANCHES, *branches.LINEAR_ONLY)
    return [name for name in known if name == "kxk" or name in names]
