"""Define blocks that train as one convolution: branches without norms, composed into one kernel.

    W = s_0 W_0 + sum_b s_b K_b        one strength s per branch and output channel

W_0 is the kernel of the conv, K_b the equivalent kernel of branch b, of the same size. Chains are
multiplied as kernels, so a forward is one convolution, even in training. A block stores for
backward what a plain conv stores, and the composed kernel.

The branches change the descent. With G = dL/dW and P_b(G) the part of G that K_b can represent, a
step of gradient descent on all parameters moves W by

    -lr (s_0^2 G + sum_b s_b^2 v_b P_b(G) + the steps of the strengths themselves)

where v_b is the `speed` of the branch: directions that the branch can represent are learned faster
by s_b^2 v_b. Without batch norms and without strengths, such blocks train worse than with norms;
with strengths, as well or better (Hu et al., "Online Convolutional Re-parameterization", CVPR 2022,
table 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from dyrep.base import RepBlock, in_order
from dyrep.branches import conv_equivalent
from dyrep.geometry import Geometry
from dyrep.linear_branches import LinearBranch, LinearWindow, build, draw

TINY = 1e-3  # a strength below this is too small to divide by


class LinearBlock(RepBlock):
    """A conv whose kernel is composed of its branches at every forward.

    Its bias is the bias of the conv, and stays in the conv, which the kxk branch holds. Kernels are
    composed in float32 (in float64 networks: float64), even under autocast.

    Args:
        conv: The conv that the block replaces.
        names: Names of the branches; kxk is always among them.
        fixed: Whether kxk has no strength, so that its kernel keeps the speed of a conv.
    """

    form = "linear"

    def __init__(self, conv: nn.Conv2d, names: Sequence[str], fixed: bool = False) -> None:
        named = {name: build(name, Geometry.of(conv), fixed) for name in in_order(names)}
        for branch in named.values():
            draw(branch)
        super().__init__(conv, named, fixed)
        self.kxk.conv = conv

    @property
    def kxk(self) -> LinearWindow:
        """The branch that carries the original kernel."""
        branch = self.branches["kxk"]
        assert isinstance(branch, LinearWindow)
        return branch

    @property
    def conv(self) -> nn.Conv2d:
        """The original conv, which the innermost kxk branch holds."""
        inner = self.inner
        conv = inner.conv if isinstance(inner, LinearBlock) else inner
        assert isinstance(conv, nn.Conv2d)
        return conv

    def others(self) -> list[LinearBranch]:
        return [branch for branch in super().others() if isinstance(branch, LinearBranch)]

    def add(self, names: Sequence[str]) -> list[LinearBranch]:
        """Add new branches beside the present ones; return the new ones.

        Raises:
            ValueError: the block has such a branch already.
        """
        if double := sorted(set(names) & set(self.names)):
            raise ValueError(f"the block has {', '.join(double)} already")
        new = {name: build(name, self.geometry, self.fixed) for name in names}
        for branch in new.values():
            branch.to(self.kernel).train(self.training)
        both = {**self.branches, **new}
        self.branches = nn.ModuleDict({name: both[name] for name in in_order(list(both))})
        return list(new.values())

    def composed(self, dtype: torch.dtype) -> Tensor:
        """Return the kernel (out, in/groups, kh, kw) to which the block is equivalent."""
        total = self.kxk.kernel(dtype)
        for branch in self.others():
            total = total + branch.kernel(dtype)
        return total

    def forward(self, x: Tensor) -> Tensor:
        """Return the conv of x with the composed kernel."""
        conv, device = self.conv, x.device.type
        exact = torch.promote_types(conv.weight.dtype, torch.float32)
        casting = torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if casting else nullcontext():
            kernel = self.composed(exact)
        return conv._conv_forward(x, kernel.to(conv.weight.dtype), conv.bias)

    def shares(self) -> Tensor:
        """Return the norm of each branch but kxk, divided by the norm of the whole kernel."""
        norms = [torch.linalg.vector_norm(b.kernel(torch.float64)) for b in self.others()]
        whole = torch.linalg.vector_norm(self.composed(torch.float64))
        return torch.stack(norms) / whole if norms else whole.new_empty(0)

    def absorb(self, kernel: Tensor, bias: Tensor) -> None:
        """Add a kernel to that of the kxk branch; the bias of a linear branch is zero."""
        inner, scale = self.inner, self.kxk.scale
        if scale is not None:
            # a strength of about zero becomes one, and the kernel loses what this would add
            old = scale.double()
            new = torch.where(old.abs() < TINY, 1.0, old)
            held = (old - new)[:, None, None, None] * conv_equivalent(inner)[0]
            kernel = (kernel + held) / new[:, None, None, None]
            scale.copy_(new)
        if isinstance(inner, LinearBlock):
            inner.absorb(kernel, bias)
        else:
            self.kernel.copy_(self.kernel.double() + kernel)

    def back_to_conv(self, kernel: Tensor, bias: Tensor) -> nn.Conv2d:
        """Return the original conv, with this kernel in its weight parameter."""
        self.kernel.copy_(kernel)
        return self.conv


def scales(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the strengths of linear branches by name; these parameters must not decay.

    The library puts them into a parameter group without weight decay. They are vectors, so groups
    that exempt vectors (biases, norms) from decay exempt strengths as well.
    """
    return {
        f"{path}.scale": module.scale
        for path, module in model.named_modules()
        if isinstance(module, LinearBranch) and module.scale is not None
    }
