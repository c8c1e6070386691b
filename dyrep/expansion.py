"""Putting branches beside a convolution: `expand` at the start, `grow` while training.

Growing keeps the function in eval mode exactly, and in train mode up to the fluctuation of batch
statistics: the kxk kernel gives up what the new branches add (Huang et al., eq. 6), and its batch
norm gets the deviation and the mean of its own output as gamma and beta, so that normalising with
a batch undoes itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from dyrep import branches, calibration, surgery
from dyrep.block import RepBlock, norm_like
from dyrep.branches import Branch, OneByOneAverage, OneByOneKxK, WindowConv
from dyrep.geometry import Geometry

DBB_BRANCHES = ("kxk", "1x1", "1x1_kxk", "1x1_avg")
ACB_BRANCHES = ("kxk", "1xk", "kx1")
REPVGG_BRANCHES = ("kxk", "1x1", "identity")
DEEPEST = 2  # blocks around a conv: one level of recursion, as published
FAINT = 0.01  # strength of a new branch relative to kxk, as published


@dataclass
class Expansion:
    """What was done and what was left alone: path to branches, path to reason."""

    grown: dict[str, list[str]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def expand(
    model: nn.Module,
    names: Iterable[str] | None = None,
    branches: Sequence[str] = DBB_BRANCHES,
) -> Expansion:
    """Give convs the same branches, freshly initialised, before training starts (DBB, ACB, RepVGG).

    Args:
        model: Changed in place.
        names: Paths of convs; all of them if None.
        branches: Each conv takes those it can.

    Raises:
        KeyError: a name is not a path of the model.
    """
    surgery.refuse_wrapped(model)
    done = Expansion(left=unfit_convs(model))
    chosen = [path for path, _ in convs(model)] if names is None else list(names)
    for path in chosen:
        if path in done.left:
            continue
        if path not in dict(convs(model)):
            raise KeyError(f"{path} is not a convolution of this model")
        block = place_block(model, path, branches)
        done.grown[path] = block.names
    return done


def place_block(model: nn.Module, path: str, names: Sequence[str]) -> RepBlock:
    """Replace the conv at `path` by a block with the branches it can take."""
    conv = model.get_submodule(path)
    assert isinstance(conv, nn.Conv2d)
    fitting = [name for name in names if branches.unfit(name, Geometry.of(conv)) is None]
    block = RepBlock(conv, fitting, norm_like(model))
    if conv.weight.is_contiguous(memory_format=torch.channels_last):
        block.to(memory_format=torch.channels_last)
    surgery.replace(model, path, block)
    return block


def convs(model: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    """Return the convs that may become blocks: those of the network, and kxk convs in blocks."""
    return [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and max(module.kernel_size) > 1
        and not _is_part_of_kernel(model.get_submodule(path.rpartition(".")[0]))
    ]


def _is_part_of_kernel(parent: nn.Module) -> bool:
    """Whether a conv's parent is a 1xk or kx1 branch: those are leaves."""
    return isinstance(parent, WindowConv) and parent.size != parent.geometry.kernel_size


def unfit_convs(model: nn.Module) -> dict[str, str]:
    """Return the convs that must be left alone, with the reason."""
    everything = [m for _, m in model.named_modules(remove_duplicate=False)]
    paths = Counter(id(module) for module in everything)
    weights = Counter(id(m.weight) for m in set(everything) if isinstance(m, nn.Conv2d))
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            shared = paths[id(module)] > 1 or weights[id(module.weight)] > 1
            reason = "shared between paths" if shared else _unfit(module)
            if reason:
                found[path] = reason
    return found


def _unfit(conv: nn.Conv2d) -> str | None:
    if type(conv) is not nn.Conv2d:
        return f"a subclass of Conv2d ({type(conv).__name__}) may compute something else"
    if conv._forward_hooks or conv._forward_pre_hooks:
        return "hooks on it may change what it computes"
    if not conv.weight.requires_grad:
        return "frozen"
    return None


@torch.no_grad()
def grow(
    model: nn.Module,
    path: str,
    names: Sequence[str],
    batches: Sequence[Tensor],
    generator: Generator,
) -> RepBlock:
    """Turn the conv at `path` into a block that computes the same.

    Args:
        model: Changed in place; its other modules keep every bit of their state.
        path: Of the conv.
        names: Branches to add; those the conv cannot take are left out.
        batches: Inputs of the model that set the statistics of the new branches.
        generator: Draws the new weights; the same on every rank.
    """
    conv = model.get_submodule(path)
    assert isinstance(conv, nn.Conv2d)
    bias = None if conv.bias is None else conv.bias.detach().double()
    block = place_block(model, path, names)
    for branch in block.others():
        _draw(branch, generator)
    norms = [n for branch in block.others() for n in _norms(branch)]
    *seen, output = calibration.moments(model, [*norms, block.kxk.norm], batches)
    for norm, moments in zip(norms, seen, strict=True):
        calibration.set_statistics(norm, moments)
    strength = FAINT * output.var.sqrt().mean()
    for branch in block.others():
        branch.norm.weight.fill_(strength.item())
    kernels, biases = _sum(block.others(), bias, block)
    block._weight().sub_(kernels)
    (moved,) = calibration.moments(model, [block.kxk.norm], batches)
    calibration.set_statistics(block.kxk.norm, moved)
    keep_output(block, biases)
    return block


def keep_output(block: RepBlock, bias: Tensor) -> None:
    """Set gamma and beta of the kxk norm so that it hands its input on, plus `bias`."""
    norm = block.kxk.norm
    assert norm.running_mean is not None and norm.running_var is not None
    norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
    norm.bias.copy_(norm.running_mean.double() + bias)


def _sum(others: list[Branch], bias: Tensor | None, block: RepBlock) -> tuple[Tensor, Tensor]:
    """Return the kernel the branches add, and the bias that is left for kxk."""
    weight = block._weight()
    kernel = torch.zeros_like(weight, dtype=torch.float64)
    left = kernel.new_zeros(block.geometry.out_channels) if bias is None else bias
    for branch in others:
        extra, shift = branch.equivalent()
        kernel += extra
        left = left - shift
    return kernel, left


def _draw(branch: nn.Module, generator: Generator) -> None:
    """Draw conv weights as published: N(0, 2 / fan_out)."""
    for module in branch.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            weight = torch.empty(module.weight.shape).normal_(
                0, (2 * module.groups / fan_out) ** 0.5, generator=generator
            )
            module.weight.copy_(weight)


def _norms(branch: Branch) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the batch norms of a branch, inner before last."""
    inner = isinstance(branch, OneByOneKxK) or (
        isinstance(branch, OneByOneAverage) and branch.reduce is not None
    )
    return [branch.inner_norm, branch.norm] if inner else [branch.norm]  # type: ignore[list-item]
