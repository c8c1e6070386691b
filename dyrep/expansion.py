"""Add branches beside convolutions: `expand` before training, `grow` during training.

Growing keeps the function in eval mode exactly, and in train mode up to the fluctuation of batch
statistics. For this, the kernels of the new branches are subtracted from the kxk kernel (Huang et
al., CVPR 2022). The batch norm of kxk gets the deviation and the mean of its own input as gamma and
beta, so that it undoes the normalisation by a batch. If no batch norm follows that would remove
the fluctuation of kxk, the norm of kxk keeps the calibrated statistics.

Linear blocks have no statistics: the kernels of the new branches are subtracted from W_0, and the
function is the same up to rounding in either mode, without calibration.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from dyrep import calibration, linear_branches, surgery, wrappers
from dyrep.base import Form, RepBlock
from dyrep.block import (
    AbsorbedNorm,
    BatchNormBlock,
    depth,
    fitting,
    place_block,
    require_branches,
    require_form,
)
from dyrep.branches import draw, inner_norm
from dyrep.calling import Inputs
from dyrep.eligible import convs, unfit_convs, warn_of_nothing
from dyrep.geometry import Geometry
from dyrep.linear import LinearBlock
from dyrep.linear_branches import LinearBranch
from dyrep.norm_pairs import following_norms
from dyrep.transaction import all_or_nothing

DBB_BRANCHES = ("kxk", "1x1", "1x1_kxk", "1x1_avg")
OREPA_BRANCHES = (*DBB_BRANCHES, "1x1_prior", "dw_1x1")  # for linear blocks
ACB_BRANCHES = ("kxk", "1xk", "kx1")
REPVGG_BRANCHES = ("kxk", "1x1", "identity")
DEEPEST = 2  # at most so many blocks are around a conv: one level of recursion, as published
# Strength of a new branch. With batch norms it is gamma, in deviations of the output of the layer.
# Published is 0.01 at gamma = 1; other values were not compared. For linear blocks see `grow`.
STRENGTHS: dict[Form, float] = {"batchnorm": 0.005, "linear": 0.5}


@dataclass
class Expansion:
    """The result of `expand`.

    `grown` maps paths to branches, `left` maps paths of convs without branches to the reason, and
    `absorbed` lists the norms that were replaced.
    """

    grown: dict[str, list[str]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    absorbed: list[str] = field(default_factory=list)


def expand(
    model: nn.Module,
    names: Iterable[str] | None = None,
    branches: Sequence[str] = DBB_BRANCHES,
    absorb: Inputs | None = None,
    form: Form = "batchnorm",
    own: bool = False,
    widen_depthwise: int = 1,
) -> Expansion:
    """Give convs the same new branches before training starts (DBB, ACB, RepVGG).

    Linear branches begin with the strengths of OREPA (Hu et al., CVPR 2022; see
    `linear_branches.START`), kxk among them.

    Args:
        model: The network; changed in place.
        names: Paths of convs; None for all convs.
        branches: Names of branches; each conv gets those that it can take.
        absorb: A batch of the model. With it, the batch norm that follows a conv is removed, as
            published for all three methods, because each branch has a norm of its own. A norm
            inside a block stays.
        form: `batchnorm`: each branch ends in a batch norm; `linear`: the branches are composed
            into one kernel.
        own: Whether the branches belong to the network itself, as those of RepVGG do. Then none is
            ever cut, and blocks grow inside as they grow in a network without branches. The kxk of
            a linear block then has no strength.
        widen_depthwise: Channels inside the 1x1_kxk branch of a depthwise conv, as a multiple of
            its input channels; 2 in the published DBB (github.com/DingXiaoH/DiverseBranchBlock).

    Raises:
        KeyError: a name is not a path of the model.
        ValueError: there is no branch or form of that name, the model has blocks of another form,
            linear blocks are combined with `absorb` or `widen_depthwise`, or `widen_depthwise` is
            below 1.
    """
    surgery.refuse_wrapped(model)
    require_form(model, form)
    require_branches(branches, form)
    _refuse_unfit_form(form, absorb is not None, widen_depthwise)
    done = Expansion(left=unfit_convs(model))
    known = dict(convs(model))
    followed = {} if absorb is None else following_norms(model, absorb)
    followed = {path: norm for path, norm in followed.items() if depth(model, norm) == 0}
    chosen = list(known if names is None else names)
    for path in chosen:
        if path not in known:
            raise KeyError(f"{path} is not a convolution of this model")
        if path not in done.left and not fitting(known[path], branches):
            done.left[path] = "it can take none of these branches"
    before = dict(model.named_parameters())
    with all_or_nothing(model, values=False):
        for path in [path for path in chosen if path not in done.left]:
            wide = Geometry.of(known[path]).depthwise and "1x1_kxk" in branches
            block = place_block(
                model,
                path,
                branches,
                fixed=own and form == "linear",
                form=form,
                own=branches if own else (),
                widen=widen_depthwise if wide else 1,
            )
            done.grown[path] = block.names
            if path in followed:
                surgery.replace(model, followed[path], AbsorbedNorm())
                done.absorbed.append(followed[path])
    if names is None and not done.grown:
        warn_of_nothing(done.left)
    wrappers.outdate(model, before)
    return done


def _refuse_unfit_form(form: Form, absorb: bool, widen_depthwise: int) -> None:
    if form == "linear" and absorb:
        raise ValueError(
            "absorb takes away the batch norm behind a conv because each branch has its own; "
            "linear branches have none: leave absorb out"
        )
    if widen_depthwise < 1 or (form == "linear" and widen_depthwise > 1):
        raise ValueError(
            f"widen_depthwise={widen_depthwise}: a branch has at least the channels that come in, "
            "and no more in linear blocks; use 1"
        )


@torch.no_grad()
def grow(
    model: nn.Module,
    path: str,
    names: Sequence[str],
    batches: Sequence[Tensor],
    generator: Generator,
    form: Form = "batchnorm",
    strength: float | None = None,
) -> RepBlock:
    """Turn the conv at `path` into a block that computes the same function.

    Args:
        model: The network; changed in place. Its other modules keep every bit of their state.
        path: Path of the conv.
        names: Branches to add; branches that the conv cannot take are left out.
        batches: Inputs of the model that set the statistics of the new branches; a linear block
            has no statistics and needs no batches.
        generator: Draws the new weights; must be the same on every rank.
        form: Form of the block.
        strength: Strength of each new branch; by default 0.005 (`batchnorm`) or 0.5 (`linear`).
            With batch norms it is gamma, in deviations of the output of the layer. In a linear
            block, it sets how much faster a step of gradient descent moves the part of the kernel
            that the branch can represent: faster by strength^2 than the conv alone, from the first
            step on, so by a quarter for 0.5. For that, a branch whose own speed is v, e.g. 1 / k^2
            of the average, gets s = strength / sqrt(v). A kernel drawn from N(0, 2 / fan_in) then
            has the same norm, strength * sqrt(2), in every branch but the identity.

    Raises:
        ValueError: there is no branch or form of that name, or the model has blocks of another
            form.
    """
    strength = STRENGTHS[form] if strength is None else strength
    if form == "linear":
        return _grow_linear(model, path, names, generator, strength)
    bias = _bias(model.get_submodule(path))
    followed = path in following_norms(model, batches[0])
    block = place_block(model, path, names, fixed=not followed)
    assert isinstance(block, BatchNormBlock)
    for branch in block.others():
        draw(branch, generator)
    inner = [norm for branch in block.others() if (norm := inner_norm(branch)) is not None]
    calibration.calibrate(model, inner, batches)  # first, as the border follows from these norms
    last = [branch.norm for branch in block.others()]
    output = calibration.calibrate(model, [*last, block.kxk.norm], batches)[-1]
    gamma = strength * output.var.sqrt().mean()
    for branch in block.others():
        branch.norm.weight.fill_(gamma.item())
    kernel, left = _remainder(block, bias)
    block.kernel.sub_(kernel)
    calibration.calibrate(model, [block.kxk.norm], batches)
    keep_output(block, left)
    return block


def _grow_linear(
    model: nn.Module, path: str, names: Sequence[str], generator: Generator, strength: float
) -> LinearBlock:
    block = place_block(model, path, names, fixed=True, form="linear")
    assert isinstance(block, LinearBlock)
    for branch in block.others():
        linear_branches.draw(branch, generator)
        linear_branches.strengthen(branch, strength)
    _give_up(block, block.others())
    return block


@torch.no_grad()
def add(
    model: nn.Module, path: str, names: Sequence[str], generator: Generator, strength: float
) -> LinearBlock:
    """Add branches to the conv or linear block at `path`; the function stays the same.

    Args:
        model: The network; changed in place. Its other modules keep every bit of their state.
        path: Path of the conv, or of the block that it became.
        names: Branches that are not there and that the conv can take.
        generator: Draws the new weights; must be the same on every rank.
        strength: Strength of each new branch; see `grow`.
    """
    block = model.get_submodule(path)
    if not isinstance(block, LinearBlock):
        return _grow_linear(model, path, names, generator, strength)
    new = block.add(names)
    for branch in new:
        linear_branches.draw(branch, generator)
        linear_branches.strengthen(branch, strength)
    _give_up(block, new)
    return block


@torch.no_grad()
def add_alike(average: nn.Module, path: str, names: Sequence[str], block: LinearBlock) -> None:
    """Give an averaged network the branches that `add` gave to the network itself."""
    copied = average.get_submodule(path)
    if not isinstance(copied, LinearBlock):
        return grow_alike(average, path, block)
    new = copied.add(names)
    for name, branch in zip(names, new, strict=True):
        branch.load_state_dict(block.branches[name].state_dict())
    _give_up(copied, new)


def _give_up(block: LinearBlock, new: Sequence[LinearBranch]) -> None:
    """Subtract the kernels of the new branches from the kernel of the conv."""
    if not new:
        return
    added = [branch.equivalent()[0] for branch in new]
    block.absorb(-torch.stack(added).sum(0), added[0].new_zeros(()))


@torch.no_grad()
def grow_alike(average: nn.Module, path: str, block: RepBlock) -> None:
    """Grow a conv of an averaged network (EMA, SWA) as `block` grew in the network itself.

    The new branches and the statistics are the same. The kxk branch gets the averaged kernel minus
    the kernels of the new branches, so the averaged network keeps its eval function, too.
    """
    bias = _bias(average.get_submodule(path))
    copied = place_block(average, path, block.names, block.fixed, block.form)
    for ours, theirs in zip(copied.others(), block.others(), strict=True):
        ours.load_state_dict(theirs.state_dict())
    if isinstance(copied, LinearBlock):
        return _give_up(copied, copied.others())
    assert isinstance(copied, BatchNormBlock) and isinstance(block, BatchNormBlock)
    kernel, left = _remainder(copied, bias)
    copied.kernel.sub_(kernel)
    copied.kxk.norm.load_state_dict(block.kxk.norm.state_dict())
    keep_output(copied, left)


def _bias(conv: nn.Module) -> Tensor:
    assert isinstance(conv, nn.Conv2d)
    if conv.bias is None:
        return conv.weight.new_zeros(conv.out_channels, dtype=torch.float64)
    return conv.bias.detach().double()


def keep_output(block: BatchNormBlock, bias: Tensor) -> None:
    """Set gamma and beta of the kxk norm so that it returns its input plus `bias`."""
    norm = block.kxk.norm
    assert norm.running_mean is not None and norm.running_var is not None
    norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
    norm.bias.copy_(norm.running_mean.double() + bias)


def _remainder(block: BatchNormBlock, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kernel that the new branches add, and the bias that remains for kxk."""
    kernels, biases = zip(*(branch.equivalent() for branch in block.others()), strict=True)
    return torch.stack(kernels).sum(0), bias - torch.stack(biases).sum(0)
