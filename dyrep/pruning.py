"""Cut branches: the kxk branch absorbs their kernels, so the function stays the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dyrep import branches, calibration, surgery, wrappers
from dyrep.base import RepBlock
from dyrep.block import BatchNormBlock, blocks
from dyrep.branches import WindowConv
from dyrep.linear import LinearBlock
from dyrep.transaction import all_or_nothing

Weights = dict[str, dict[str, float]]  # by block and branch, see `branch_weights`


@torch.no_grad()
def branch_weights(model: nn.Module) -> Weights:
    """Return the weight of each branch other than kxk, by block and branch.

    Cutting compares these weights. A weight is the mean |gamma| of the last norm of a branch,
    relative to that of kxk; in a linear block, the norm of the branch's kernel, relative to that of
    the whole kernel.
    """
    return {
        path: dict(zip(_other_names(block), _ratios(block).tolist(), strict=True))
        for path, block in blocks(model).items()
    }


@torch.no_grad()
def weak_branches(block: BatchNormBlock, cut_std: float, cut_ratio: float) -> list[str]:
    """Return the branches that the published rule cuts.

    If the weights spread by more than `cut_std`, branches below both their mean and `cut_ratio` are
    cut (after Huang et al.; the thresholds are those of the published code).
    """
    names, ratios = _other_names(block), _ratios(block)
    if len(names) < 2 or not ratios.std().item() > cut_std:
        return []
    limit = min(ratios.mean().item(), cut_ratio)
    return [name for name, ratio in zip(names, ratios.tolist(), strict=True) if ratio < limit]


def _other_names(block: RepBlock) -> list[str]:
    return [name for name in block.names if name != "kxk"]


def _ratios(block: RepBlock) -> Tensor:
    """Return the weights of the branches other than kxk, in the order of their names."""
    if isinstance(block, LinearBlock):
        return block.shares()
    assert isinstance(block, BatchNormBlock)
    reference = block.kxk.norm.weight.detach().abs().mean()
    weights = [branch.norm.weight.detach().abs().mean() for branch in block.others()]
    return torch.stack(weights) / reference if weights else reference.new_empty(0)


@torch.no_grad()
def cut(
    model: nn.Module,
    path: str,
    names: Sequence[str],
    batches: Sequence[Tensor] = (),
) -> RepBlock | nn.Conv2d:
    """Remove branches of the block at `path`; return the module that is there afterwards.

    In eval mode, the function stays exactly the same. In train mode, it stays exactly the same if
    the block is linear, which needs no batches, else up to the fluctuation of batch statistics. A
    block inside the kxk branch keeps all that it has learned. A block that is left with kxk alone
    becomes a plain conv again.

    Raises:
        ValueError: a name is not a branch of the block, or is kxk; there are no batches, or a
            remaining branch gets values from them that are not finite; or a conv inside is pruned
            or parametrized. The model is as it was.
    """
    if not isinstance(model.get_submodule(path), LinearBlock):
        batches = calibration.checked(batches)
    before = dict(model.named_parameters())
    with all_or_nothing(model):
        left = without(model, path, names, batches)
    wrappers.outdate(model, before)
    return left


@torch.no_grad()
def without(
    model: nn.Module, path: str, names: Sequence[str], batches: Sequence[Tensor]
) -> RepBlock | nn.Conv2d:
    """Do the same as `cut`, but leave it to the caller to restore the model on an error."""
    left = _remove(model, path, names)
    if isinstance(left, BatchNormBlock):
        for branch in reversed(left.chain()):  # innermost first: outer statistics depend on it
            (seen,) = calibration.moments(model, [branch.norm], batches)
            _renormalise(branch, partial(calibration.set_statistics, seen=seen))
    return left


@torch.no_grad()
def cut_alike(average: nn.Module, path: str, names: Sequence[str], block: nn.Module) -> None:
    """Remove the same branches of an averaged network, which keeps its eval function too.

    Args:
        average: The averaged network (EMA, SWA).
        path: Path of the block.
        names: Branches that `cut` removed from the network itself.
        block: The module that is at `path` in the network itself now; its statistics are copied.
    """
    left = _remove(average, path, names)
    if isinstance(left, BatchNormBlock):
        assert isinstance(block, BatchNormBlock)
        for ours, theirs in zip(left.chain(), block.chain(), strict=True):
            _renormalise(ours, partial(_copy_statistics, other=theirs.norm))


def _remove(model: nn.Module, path: str, names: Sequence[str]) -> RepBlock | nn.Conv2d:
    block = model.get_submodule(path)
    if not isinstance(block, RepBlock):
        raise ValueError(f"{path} is a {type(block).__name__}, it has no branches")
    names = list(dict.fromkeys(names))
    unknown = [name for name in names if name == "kxk" or name not in block.names]
    if unknown:
        raise ValueError(
            f"{path} cannot lose {', '.join(unknown)}; it has {', '.join(block.names)}"
        )
    for inner in block.modules():
        if isinstance(inner, nn.Conv2d) and not isinstance(inner._parameters.get("weight"), Tensor):
            raise ValueError(
                f"a convolution inside {path} is pruned or parametrized; make that permanent first "
                "(torch.nn.utils.prune.remove, parametrize.remove_parametrizations)"
            )
    removed = [block.branches[name].equivalent() for name in names]  # type: ignore[operator]
    for name in names:
        del block.branches[name]
    if not block.others() and isinstance(block.inner, nn.Conv2d):
        kernel, bias = block.equivalent()
        kernel, bias = kernel + sum(k for k, _ in removed), bias + sum(b for _, b in removed)
        conv = block.back_to_conv(kernel, bias)
        surgery.hand_on_hooks(block, conv)
        surgery.replace(model, path, conv)
        return conv
    for kernel, bias in removed:
        block.absorb(kernel, bias)
    return block


def _renormalise(branch: WindowConv, set_statistics: Callable[[_BatchNorm], None]) -> None:
    """Set new statistics of a norm, and scale and shift that keep its eval-mode map."""
    norm = branch.norm
    scale, shift = branches.affine(norm)
    set_statistics(norm)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.weight.copy_(scale * (norm.running_var.double() + norm.eps).sqrt())
    norm.bias.copy_(shift + scale * norm.running_mean.double())


def _copy_statistics(norm: _BatchNorm, other: _BatchNorm) -> None:
    for ours, theirs in zip(norm.buffers(), other.buffers(), strict=True):
        ours.copy_(theirs)


@torch.no_grad()
def refresh(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Measure the statistics of every fixed norm again; the function in eval mode stays the same.

    The gamma of the norm becomes the deviation of its branch, times the scale that the norm has
    learned, and beta follows. The kernel before the norm has been trained since, so without this
    the other branches could not be compared with it.
    """
    normed = [block for block in blocks(model).values() if isinstance(block, BatchNormBlock)]
    fixed = [block.kxk for block in normed if block.fixed]
    found = calibration.moments(model, [branch.norm for branch in fixed], batches)
    for branch, seen in zip(fixed, found, strict=True):
        _renormalise(branch, partial(calibration.set_statistics, seen=seen))


def weak_in(
    model: nn.Module, cut_std: float, cut_ratio: float, began: Weights
) -> dict[str, list[str]]:
    """Return the branches to cut, by block, nested blocks first; never the network's own branches.

    Args:
        model: A network with blocks.
        cut_std: Threshold of the published rule, for blocks with batch norms.
        cut_ratio: Threshold of the published rule; for linear blocks see `faded`.
        began: Weights that the branches of linear blocks had when they were new.
    """
    weak: dict[str, list[str]] = {}
    for path, block in reversed(blocks(model).items()):
        if isinstance(block, LinearBlock):
            weak[path] = faded(block, cut_ratio, began.get(path, {}))
        elif isinstance(block, BatchNormBlock):
            weak[path] = weak_branches(block, cut_std, cut_ratio)
    there = blocks(model)
    free = {path: [n for n in names if n not in there[path].own] for path, names in weak.items()}
    return {path: names for path, names in free.items() if names}


@torch.no_grad()
def faded(block: LinearBlock, cut_ratio: float, began: dict[str, float]) -> list[str]:
    """Return the branches that weigh less than `cut_ratio` of their weight when they were new.

    Kernels of linear branches start at different sizes: the average branch of a block from `expand`
    starts at a fourteenth of the whole kernel, and the published rule would always cut it. A branch
    is useful if gradient descent keeps its weight up against weight decay.
    """
    now = zip(_other_names(block), _ratios(block).tolist(), strict=True)
    return [name for name, weight in now if weight < cut_ratio * began.get(name, weight)]


def known(began: Weights, model: nn.Module) -> Weights:
    """Return the initial weight of each branch of a linear block; for a new branch, its weight."""
    linear = {p for p, block in blocks(model).items() if isinstance(block, LinearBlock)}
    now = {path: names for path, names in branch_weights(model).items() if path in linear}
    return {
        path: {name: began.get(path, {}).get(name, weight) for name, weight in names.items()}
        for path, names in now.items()
    }
