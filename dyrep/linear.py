"""Blocks that train as one convolution: branches without norms, composed into one kernel.

    W = s_0 W_0 + sum_b s_b K_b        one strength s per branch and output channel

W_0 is the kernel of the conv, K_b what branch b amounts to as a kernel of that size; the chains
are multiplied in the space of kernels, so a forward is one convolution, in training too. What is
stored for backward is what a plain conv stores, and the composed kernel.

What this changes is the descent. With G = dL/dW and P_b(G) the part of G that K_b can follow, a
step of gradient descent on all parameters moves W by

    -lr (s_0^2 G + sum_b s_b^2 v_b P_b(G) + what the strengths themselves learn)

where v_b is the `speed` of the branch: the directions it can follow are learned faster by
s_b^2 v_b. Without batch norms and without strengths such blocks train worse than with norms; with
them as well or better (Hu et al., "Online Convolutional Re-parameterization", CVPR 2022, table 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Generator, Tensor, nn

from dyrep import algebra
from dyrep.base import RepBlock, in_order
from dyrep.branches import Branch, conv_equivalent, windows
from dyrep.geometry import Geometry, Pair
from dyrep.recompute import rebuilt, refuse_changed, versions

# Of blocks from the start. kxk, 1x1, 1x1_kxk and 1x1_avg as in the code of OREPA; it has no strips
# and no identity, which stand between its 1x1 and its average here.
START = {
    "kxk": 0.25,
    "1x1": 1.0,
    "1x1_kxk": 0.5,
    "1x1_avg": 0.25,
    "1xk": 0.5,
    "kx1": 0.5,
    "identity": 0.5,
}
TINY = 1e-3  # a strength below is no number to divide by


class LinearBranch(Branch):
    """A kernel times a strength per output channel.

    `scale` (out,) is None in a kxk branch that keeps the strength 1. `speed` is how fast gradient
    descent moves the kernel within what the branch can follow, beside a conv, at strength 1.
    """

    def __init__(self, geometry: Geometry, start: float | None) -> None:
        super().__init__()
        self.geometry = geometry
        strengths = None if start is None else torch.full((geometry.out_channels,), start)
        self.scale = None if strengths is None else nn.Parameter(strengths)

    @property
    def speed(self) -> float:
        return 1.0

    def kernel(self, dtype: torch.dtype) -> Tensor:
        """Return what the branch adds to the kernel of the block, composed in this dtype."""
        raise NotImplementedError

    def scaled(self, kernel: Tensor) -> Tensor:
        """Return a kernel times the strengths."""
        return kernel if self.scale is None else scaled(kernel, self.scale)

    @torch.no_grad()
    def equivalent(self) -> tuple[Tensor, Tensor]:
        kernel = self.kernel(torch.float64)
        return kernel, kernel.new_zeros(len(kernel))


class LinearWindow(LinearBranch):
    """kxk, 1x1, 1xk and kx1: a kernel in its place."""

    def __init__(self, geometry: Geometry, size: Pair, offset: Pair, start: float | None) -> None:
        super().__init__(geometry, start)
        self.size, self.offset = size, offset
        self.conv: nn.Module = geometry.conv(size, offset)

    def kernel(self, dtype: torch.dtype) -> Tensor:
        kernel = self.scaled(weight(self.conv, dtype))
        return algebra.embed(kernel, self.geometry.kernel_size, self.offset)

    def equivalent(self) -> tuple[Tensor, Tensor]:
        return super().equivalent()[0], conv_equivalent(self.conv)[1]


class LinearOneByOneKxK(LinearBranch):
    """A 1x1 kernel, the identity plus `reduce`, then a kxk kernel."""

    def __init__(self, geometry: Geometry, start: float) -> None:
        super().__init__(geometry, start)
        g = geometry
        self.reduce = nn.Conv2d(g.in_channels, g.in_channels, 1, groups=g.groups, bias=False)
        self.conv: nn.Module = g.conv(g.kernel_size, (0, 0))

    def kernel(self, dtype: torch.dtype) -> Tensor:
        g, learned = self.geometry, weight(self.reduce, dtype)
        first = learned + algebra.identity(g.in_channels, g.groups, like=learned)
        # the tensors of now: after `functional_call` the modules have others
        inside, scale = self.conv, self.scale
        kernel = inside.weight if isinstance(inside, nn.Conv2d) else weight(inside, dtype)
        assert scale is not None
        before = versions([kernel, scale])

        def second() -> Tensor:
            refuse_changed([kernel, scale], before)
            return algebra.rows(scaled(kernel.to(dtype), scale), g.groups)

        matrices = second()
        with rebuilt(matrices, second):  # as large as the kernel: not kept for backward
            merged = matrices @ algebra.columns(first, g.groups)
        return algebra.from_rows(merged, g.kernel_size)


class LinearOneByOneAverage(LinearBranch):
    """A 1x1 kernel spread over the window; the average alone where the conv is depthwise."""

    def __init__(self, geometry: Geometry, start: float) -> None:
        super().__init__(geometry, start)
        g = geometry
        self.reduce: nn.Conv2d | None = None
        if not g.depthwise:
            self.reduce = nn.Conv2d(g.in_channels, g.out_channels, 1, groups=g.groups, bias=False)

    @property
    def speed(self) -> float:
        height, width = self.geometry.kernel_size
        return 1 / (height * width)

    def kernel(self, dtype: torch.dtype) -> Tensor:
        g = self.geometry
        if self.reduce is None:
            assert self.scale is not None
            kernel = algebra.identity(g.out_channels, g.groups, like=self.scale.to(dtype))
        else:
            kernel = weight(self.reduce, dtype)
        return algebra.average(self.scaled(kernel), g.kernel_size)


class LinearIdentity(LinearBranch):
    """The input itself."""

    def kernel(self, dtype: torch.dtype) -> Tensor:
        g = self.geometry
        assert self.scale is not None
        kernel = algebra.identity(g.out_channels, g.groups, like=self.scale.to(dtype))
        return algebra.embed(self.scaled(kernel), g.kernel_size, g.centre)


class LinearBlock(RepBlock):
    """A conv whose kernel is composed of its branches at every forward.

    Its bias is the bias of the conv, which itself stays where it was, in the kxk branch. Composing
    is done in float32 (float64 networks: float64), also under autocast.

    Args:
        conv: The conv it replaces.
        names: Branches; kxk is always among them.
        fixed: kxk has no strength: its kernel keeps the speed that it had as a conv.
    """

    form = "linear"

    def __init__(self, conv: nn.Conv2d, names: Sequence[str], fixed: bool = False) -> None:
        parts = {name: build(name, Geometry.of(conv), fixed) for name in in_order(names)}
        for branch in parts.values():
            draw(branch)
        super().__init__(conv, parts, fixed)
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
        """Put fresh branches beside those there are; return them.

        Raises:
            ValueError: a branch is there already.
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
        """Return the kernel (out, in/groups, kh, kw) the block amounts to."""
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
        """Return the norm of each branch beside kxk over that of the whole kernel."""
        norms = [torch.linalg.vector_norm(b.kernel(torch.float64)) for b in self.others()]
        whole = torch.linalg.vector_norm(self.composed(torch.float64))
        return torch.stack(norms) / whole if norms else whole.new_empty(0)

    def absorb(self, kernel: Tensor, bias: Tensor) -> None:
        """Let the kxk branch compute this kernel as well; the bias of a linear branch is zero."""
        inner, scale = self.inner, self.kxk.scale
        if scale is not None:
            # where the strength is about zero it becomes one, and what it held back goes too
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
        """Return the conv itself, with this kernel in its very weight."""
        self.kernel.copy_(kernel)
        return self.conv


def build(name: str, geometry: Geometry, fixed: bool) -> LinearBranch:
    """Return a fresh branch by its name; a fixed kxk has no strengths."""
    places = windows(geometry)
    if name in places:
        start = None if fixed and name == "kxk" else START[name]
        return LinearWindow(geometry, *places[name], start)
    kinds = {
        "1x1_kxk": LinearOneByOneKxK,
        "1x1_avg": LinearOneByOneAverage,
        "identity": LinearIdentity,
    }
    return kinds[name](geometry, START[name])


@torch.no_grad()
def draw(branch: LinearBranch, generator: Generator | None = None) -> None:
    """Draw kernels from N(0, 2 / fan_in); the first of a chain begins as the identity."""
    for module in branch.modules():
        if isinstance(module, nn.Conv2d):
            deviation = (2 / module.weight[0].numel()) ** 0.5
            drawn = torch.empty(module.weight.shape).normal_(0, deviation, generator=generator)
            module.weight.copy_(drawn)
    if isinstance(branch, LinearOneByOneKxK):
        branch.reduce.weight.zero_()


@torch.no_grad()
def strengthen(branch: LinearBranch, strength: float) -> None:
    """Let gradient descent move what a branch can follow faster by strength^2."""
    if branch.scale is not None:
        branch.scale.fill_(strength / branch.speed**0.5)


def scaled(kernel: Tensor, scale: Tensor) -> Tensor:
    """Return a kernel times one strength per output channel."""
    return kernel * scale.to(kernel.dtype)[:, None, None, None]


def weight(conv: nn.Module, dtype: torch.dtype) -> Tensor:
    """Return the kernel of a conv, or of the block that took its place, in this dtype."""
    if isinstance(conv, LinearBlock):
        return conv.composed(dtype)
    kernel = conv.weight
    assert isinstance(kernel, Tensor)
    return kernel.to(dtype)


def scales(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the strengths of linear branches by name: parameters that must not decay.

    The library gives them to a parameter group without weight decay. They are vectors, so groups
    that spare vectors (biases, norms) spare them as well.
    """
    return {
        f"{path}.scale": module.scale
        for path, module in model.named_modules()
        if isinstance(module, LinearBranch) and module.scale is not None
    }
