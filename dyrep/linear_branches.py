"""Define the branches of linear blocks: each is a kernel, made of its parameters, times strengths.

    kxk        a kernel                                    always there, carries the original weight
    1x1        a 1x1 kernel at its position in the kernel
    1x1_kxk    a 1x1 kernel, the identity plus what it learns, then a kxk kernel
    1x1_avg    a 1x1 kernel / window in every position     no kernel where the conv is depthwise
    1xk, kx1   a strip at its position in the kernel
    identity   the identity at its position in the kernel
    1x1_prior  a 1x1 kernel times a fixed cosine           in OREPA alone
    dw_1x1     a depthwise kxk kernel, then a 1x1 kernel   in OREPA alone

After Hu et al., "Online Convolutional Re-parameterization", CVPR 2022, and its code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn

from dyrep import algebra
from dyrep.branches import Branch, conv_equivalent, windows
from dyrep.geometry import Geometry, Pair
from dyrep.recompute import rebuilt, refuse_changed, versions

# Strengths in blocks that exist from the start, as in OREPA's code. OREPA has no strips and no
# identity; their values here are between those of its 1x1 and its average.
START = {
    "kxk": 0.25,
    "1x1": 1.0,
    "1x1_kxk": 0.5,
    "1x1_avg": 0.25,
    "1x1_prior": 0.0,
    "dw_1x1": 0.5,
    "1xk": 0.5,
    "kx1": 0.5,
    "identity": 0.5,
}
WIDER = 8  # channels inside dw_1x1, as a multiple of its input channels


class LinearBranch(Branch):
    """A kernel times a strength per output channel.

    `scale` (out,) is None in a kxk branch that keeps the strength 1. `speed` is the speed at which
    gradient descent moves the kernel in directions that the branch can represent, at strength 1,
    relative to a conv.
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
        """Return the branch's contribution to the kernel of the block, composed in this dtype."""
        raise NotImplementedError

    def scaled(self, kernel: Tensor) -> Tensor:
        """Return a kernel times the strengths."""
        return kernel if self.scale is None else scaled(kernel, self.scale)

    @torch.no_grad()
    def equivalent(self) -> tuple[Tensor, Tensor]:
        kernel = self.kernel(torch.float64)
        return kernel, kernel.new_zeros(len(kernel))


class LinearWindow(LinearBranch):
    """kxk, 1x1, 1xk and kx1: a kernel at its position in the kernel of the block."""

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
        # read the tensors now, because after `functional_call` the modules have others
        inside, scale = self.conv, self.scale
        kernel = inside.weight if isinstance(inside, nn.Conv2d) else weight(inside, dtype)
        assert scale is not None
        with made_again(
            lambda: algebra.rows(scaled(kernel.to(dtype), scale), g.groups), [kernel, scale]
        ) as second:
            merged = second @ algebra.columns(first, g.groups)
        return algebra.from_rows(merged, g.kernel_size)


class LinearOneByOneAverage(LinearBranch):
    """A 1x1 kernel spread over the window; for a depthwise conv, the average alone."""

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


class LinearOneByOnePrior(LinearBranch):
    """A 1x1 kernel spread over the window by a fixed cosine per output channel, `prior`.

    The first half of the channels has waves along the height, the second half along the width, and
    each channel has its own frequency (Hu et al., CVPR 2022, "frequency prior", after their code).
    """

    prior: Tensor

    def __init__(self, geometry: Geometry, start: float) -> None:
        super().__init__(geometry, start)
        g = geometry
        self.reduce = nn.Conv2d(g.in_channels, g.out_channels, 1, groups=g.groups, bias=False)
        self.register_buffer("prior", cosines(g.out_channels, g.kernel_size))

    def kernel(self, dtype: torch.dtype) -> Tensor:
        return self.scaled(weight(self.reduce, dtype)) * self.prior.to(dtype)[:, None]


class LinearDepthwise(LinearBranch):
    """A depthwise kxk kernel with `WIDER` outputs per input, then a 1x1 kernel."""

    def __init__(self, geometry: Geometry, start: float) -> None:
        super().__init__(geometry, start)
        g = geometry
        inside = WIDER * g.in_channels
        self.expand = nn.Conv2d(
            g.in_channels, inside, g.kernel_size, groups=g.in_channels, bias=False
        )
        self.reduce = nn.Conv2d(inside, g.out_channels, 1, groups=g.groups, bias=False)

    def kernel(self, dtype: torch.dtype) -> Tensor:
        g, pointwise, scale = self.geometry, self.reduce.weight, self.scale
        assert scale is not None
        inputs = g.in_channels // g.groups

        def mix() -> Tensor:  # (inputs, outputs of the group, wider)
            kernel = scaled(pointwise.to(dtype), scale).view(g.groups, -1, inputs, WIDER)
            return kernel.transpose(1, 2).flatten(0, 1)

        wide = weight(self.expand, dtype).reshape(g.in_channels, WIDER, -1)
        with made_again(mix, [pointwise, scale]) as mixed:
            merged = mixed @ wide
        merged = merged.view(g.groups, g.in_channels // g.groups, -1, *g.kernel_size)
        return merged.transpose(1, 2).flatten(0, 1)


class LinearIdentity(LinearBranch):
    """The identity: its kernel copies each channel."""

    def kernel(self, dtype: torch.dtype) -> Tensor:
        g = self.geometry
        assert self.scale is not None
        kernel = algebra.identity(g.out_channels, g.groups, like=self.scale.to(dtype))
        return algebra.embed(self.scaled(kernel), g.kernel_size, g.centre)


def build(name: str, geometry: Geometry, fixed: bool) -> LinearBranch:
    """Return a new branch by its name; a fixed kxk has no strengths."""
    known = windows(geometry)
    if name in known:
        start = None if fixed and name == "kxk" else START[name]
        return LinearWindow(geometry, *known[name], start)
    kinds = {
        "1x1_kxk": LinearOneByOneKxK,
        "1x1_avg": LinearOneByOneAverage,
        "1x1_prior": LinearOneByOnePrior,
        "dw_1x1": LinearDepthwise,
        "identity": LinearIdentity,
    }
    return kinds[name](geometry, START[name])


@torch.no_grad()
def draw(branch: LinearBranch, generator: Generator | None = None) -> None:
    """Draw kernels from N(0, 2 / fan_in); the first kernel of a chain begins as the identity."""
    for module in branch.modules():
        if isinstance(module, nn.Conv2d):
            deviation = (2 / module.weight[0].numel()) ** 0.5
            drawn = torch.empty(module.weight.shape).normal_(0, deviation, generator=generator)
            module.weight.copy_(drawn)
    if isinstance(branch, LinearOneByOneKxK):
        branch.reduce.weight.zero_()


@torch.no_grad()
def strengthen(branch: LinearBranch, strength: float) -> None:
    """Set the strengths so that the branch speeds up the directions it represents by strength^2."""
    if branch.scale is not None:
        branch.scale.fill_(strength / branch.speed**0.5)


def cosines(channels: int, size: Pair) -> Tensor:
    """Return the frequency prior (channels, *size) of OREPA."""
    number, half = torch.arange(1, channels + 1, dtype=torch.float64), channels / 2
    height, width = ((torch.arange(k) + 0.5) * torch.pi / k for k in size)
    along = torch.cos(number[:, None] * height)[:, :, None].expand(channels, *size)
    across = torch.cos((number - half)[:, None] * width)[:, None].expand(channels, *size)
    return torch.where((number - 1 < half)[:, None, None], along, across).float()


@contextmanager
def made_again(make: Callable[[], Tensor], of: list[Tensor]) -> Iterator[Tensor]:
    """Yield the result of `make`, a tensor as large as the kernel; backward recomputes it.

    Args:
        make: Computes the tensor.
        of: The tensors from which it is computed; they must not change before backward.
    """
    before = versions(of)

    def again() -> Tensor:
        refuse_changed(of, before)
        return make()

    made = again()
    with rebuilt(made, again):
        yield made


def scaled(kernel: Tensor, scale: Tensor) -> Tensor:
    """Return a kernel times one strength per output channel."""
    return kernel * scale.to(kernel.dtype)[:, None, None, None]


def weight(conv: nn.Module, dtype: torch.dtype) -> Tensor:
    """Return the kernel of a conv, or of the block that took its place, in this dtype."""
    kernel = conv.weight if isinstance(conv, nn.Conv2d) else conv.composed(dtype)  # type: ignore[operator]
    return kernel.to(dtype)
