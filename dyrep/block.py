"""Define blocks with batch norms; place and find blocks of either form in a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dyrep import branches, surgery
from dyrep.base import Form, RepBlock, in_order
from dyrep.branches import Norm, NormBranch, WindowConv
from dyrep.geometry import Geometry
from dyrep.linear import TINY, LinearBlock

__all__ = [
    "AbsorbedNorm",
    "BatchNormBlock",
    "FixedNorm",
    "RepBlock",
    "blocks",
    "called",
    "depth",
    "fitting",
    "grown_depth",
    "outer_blocks",
    "place_block",
    "require_form",
]


class AbsorbedNorm(nn.Identity):
    """Placeholder for a batch norm that the norms of a static block replace."""


class FixedNorm(nn.Module):
    """A batch norm that keeps its statistics in training, too.

    It is the norm of kxk in a grown conv without a batch norm behind it: the output of such a
    network did not depend on the other images of a batch, and must not begin to. The class does not
    derive from batch norms, because `convert_sync_batchnorm` or `update_bn` would then treat it as
    one that learns its statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, like: _BatchNorm) -> None:
        super().__init__()
        self.eps = like.eps
        self.weight, self.bias = like.weight, like.bias
        for name, buffer in like.named_buffers():
            self.register_buffer(name, buffer)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised by the stored statistics."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class BatchNormBlock(RepBlock):
    """A sum of branches that each end in a batch norm, as published.

    The bias of the conv becomes the bias of the norm in the kxk branch.

    Args:
        conv: The conv that the block replaces.
        names: Names of the branches; kxk is always among them.
        norm: Makes a batch norm for a number of channels.
        fixed: Whether the norm of kxk keeps its statistics; see `FixedNorm`.
        widen: Channels inside 1x1_kxk, as a multiple of its input channels.
    """

    form = "batchnorm"

    def __init__(
        self,
        conv: nn.Conv2d,
        names: Sequence[str],
        norm: Norm,
        fixed: bool = False,
        widen: int = 1,
    ) -> None:
        geometry = Geometry.of(conv)
        named = {name: branches.build(name, geometry, norm, widen) for name in in_order(names)}
        if fixed:
            named["kxk"].norm = FixedNorm(nn.BatchNorm2d(conv.out_channels))  # type: ignore[assignment]
        super().__init__(conv, named, fixed)
        self.widen = widen
        inner = self.kxk.conv
        assert isinstance(inner, nn.Conv2d)
        inner.weight = conv.weight
        if conv.bias is not None:
            self.kxk.norm.bias = conv.bias  # type: ignore[assignment]

    @property
    def kxk(self) -> WindowConv:
        """The branch that carries the original kernel."""
        branch = self.branches["kxk"]
        assert isinstance(branch, WindowConv)
        return branch

    def others(self) -> list[NormBranch]:
        return [branch for branch in super().others() if isinstance(branch, NormBranch)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of all branches."""
        first, *rest = self.branches.values()
        total: Tensor = first(x)
        for branch in rest:
            total += branch(x)  # in place: no norm needs its output in backward
        return total

    def chain(self) -> list[WindowConv]:
        """Return the kxk branches from the block inwards."""
        inner = self.inner
        return [self.kxk, *(inner.chain() if isinstance(inner, BatchNormBlock) else [])]

    def absorb(self, kernel: Tensor, bias: Tensor) -> None:
        """Add a kernel and a bias to those of the kxk branch, through every norm on the way.

        Where the gamma of a norm is about zero, it becomes 1 first; the bias of the norm and the
        kernel before it are changed so that this leaves the output the same.
        """
        norm, inner = self.kxk.norm, self.inner
        old, _ = branches.affine(norm)
        assert norm.running_mean is not None and norm.running_var is not None
        deviation = (norm.running_var.double() + norm.eps).sqrt()
        faint = (old * deviation).abs() < TINY
        new = torch.where(faint, 1 / deviation, old)
        inside, constant = branches.conv_equivalent(inner)
        kernel = (kernel + (old - new)[:, None, None, None] * inside) / new[:, None, None, None]
        norm.weight.copy_(torch.where(faint, 1.0, norm.weight))
        held = torch.where(faint, (old - new) * (constant - norm.running_mean.double()), 0.0)
        norm.bias.copy_(norm.bias.double() + held + bias)
        if isinstance(inner, BatchNormBlock):
            inner.absorb(kernel, torch.zeros_like(bias))
        else:
            self.kernel.copy_(self.kernel.double() + kernel)

    def back_to_conv(self, kernel: Tensor, bias: Tensor) -> nn.Conv2d:
        """Return a conv with the weight of kxk; it may have a bias that the original lacked."""
        conv = self.plain_conv(kernel, bias, self.kernel)
        if conv.bias is not None:
            self.kxk.norm.bias.copy_(conv.bias)
            conv.bias = self.kxk.norm.bias
        conv.bias_was_added = conv.bias is not None and not self.had_bias  # type: ignore[assignment]
        return conv


def require_branches(names: Sequence[str], form: Form) -> None:
    """Refuse names that are not branches, or not branches of this form.

    Raises:
        ValueError: there are such names; the message lists them, and the valid ones.
    """
    known = branches.ALL_BRANCHES + (branches.LINEAR_ONLY if form == "linear" else ())
    if unknown := sorted(set(names) - set(known)):
        only = " (without batch norms alone)" if set(unknown) <= set(branches.LINEAR_ONLY) else ""
        raise ValueError(f"unknown branches {unknown} of form {form!r}{only}; choose from {known}")


def fitting(conv: nn.Conv2d, names: Sequence[str]) -> list[str]:
    """Return the branches, among `names`, that a conv can take."""
    return [name for name in names if branches.unfit(name, Geometry.of(conv)) is None]


def place_block(
    model: nn.Module,
    path: str,
    names: Sequence[str],
    fixed: bool = False,
    form: Form = "batchnorm",
    own: Sequence[str] = (),
    widen: int = 1,
) -> RepBlock:
    """Replace the conv at `path` by a block with the branches, among `names`, that it can take.

    Args:
        model: The network; changed in place.
        path: Path of the conv.
        names: Names of branches.
        fixed: See `RepBlock`.
        form: Form of the block.
        own: The branches, among `names`, that belong to the network itself.
        widen: Channels inside 1x1_kxk, as a multiple of its input channels; 1 in linear blocks.

    Raises:
        ValueError: there is no branch or form of that name, or the model has blocks of another
            form.
    """
    require_form(model, form)
    require_branches(names, form)
    conv = model.get_submodule(path)
    assert isinstance(conv, nn.Conv2d)
    names = fitting(conv, names)
    weight = conv.weight
    block: RepBlock
    if form == "linear":
        block = LinearBlock(conv, names, fixed)
    else:
        block = BatchNormBlock(conv, names, norm_like(model), fixed, widen)
    block.own = tuple(name for name in block.names if name in own)
    # the weight of a depthwise conv is contiguous in both memory formats
    if weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
        block.to(memory_format=torch.channels_last)
    surgery.replace(model, path, block)
    return block


def require_form(model: nn.Module, form: str) -> None:
    """Refuse blocks of another form than those that a network has already.

    Raises:
        ValueError: the form differs or is unknown; the message names the present or valid forms.
    """
    if form not in get_args(Form):
        raise ValueError(f"unknown form {form!r}; choose from {', '.join(get_args(Form))}")
    for path, block in blocks(model).items():
        if block.form != form:
            raise ValueError(
                f"form={form!r} is asked of a network whose blocks are {block.form!r} ({path}); "
                f"write form={block.form!r}, or begin with a network without blocks"
            )


def norm_like(model: nn.Module) -> Norm:
    """Return a maker of batch norms like the model's: with its momentum, synchronised or not."""
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
    """Return the number of blocks around the module at `path`."""
    return len(_around(model, path))


def grown_depth(model: nn.Module, path: str) -> int:
    """Return the number of blocks around the module at `path`, except the network's own blocks."""
    return sum(not block.own for block in _around(model, path))


def _around(model: nn.Module, path: str) -> list[RepBlock]:
    keys = path.split(".")
    above = (model.get_submodule(".".join(keys[:end])) for end in range(len(keys)))
    return [module for module in above if isinstance(module, RepBlock)]


def called(model: nn.Module, path: str) -> str:
    """Return the path of the module whose forward computes the module at `path`.

    A linear block does not call the modules inside it. For these, it is the outermost linear block.
    """
    keys = path.split(".")
    above = (".".join(keys[:end]) for end in range(1, len(keys) + 1))
    found = (parent for parent in above if isinstance(model.get_submodule(parent), LinearBlock))
    return next(found, path)
