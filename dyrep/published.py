"""Load weights of published training-time networks: DBB, DyRep, RepVGG and OREPA.

    DBB      github.com/DingXiaoH/DiverseBranchBlock       P.dbb_origin.conv.weight, ...
    DyRep    github.com/hunto/image_classification_sota    P.dbb_kxk.conv.weight, ..., nested in kxk
    RepVGG   github.com/DingXiaoH/RepVGG                   P.rbr_dense.conv.weight, ...
    OREPA    in `dyrep.published_orepa`

P is the path of the conv in a network of the same paths. The published chained branches pad with
the border, the value to which the inner norm maps zero. Here that border is subtracted everywhere
(see `dyrep.inner`), so what the rest of the branch makes of it is subtracted from the running mean
of the branch's last norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dyrep import algebra, branches, published_orepa, surgery, wrappers
from dyrep.base import in_order
from dyrep.block import AbsorbedNorm, BatchNormBlock, blocks, place_block
from dyrep.branches import OneByOneAverage, OneByOneKxK
from dyrep.transaction import all_or_nothing

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
KXK = ("dbb_origin", "dbb_kxk", "rbr_dense")
# published part of a block: its path here; `norm` stands for all tensors of a batch norm
PLACES = {
    **{f"{name}.conv.weight": "kxk.conv.weight" for name in KXK},
    **{f"{name}.bn.norm": "kxk.norm" for name in KXK},
    **{f"{name}.conv.weight": "1x1.conv.weight" for name in ("dbb_1x1", "rbr_1x1")},
    **{f"{name}.bn.norm": "1x1.norm" for name in ("dbb_1x1", "rbr_1x1")},
    **{f"{name}.norm": "identity.norm" for name in ("dbb_id", "rbr_identity")},
    **{f"dbb_{name}.conv.weight": f"{name}.conv.weight" for name in ("1xk", "kx1")},
    **{f"dbb_{name}.bn.norm": f"{name}.norm" for name in ("1xk", "kx1")},
    **{f"{name}.conv.weight": "1x1_avg.reduce.weight" for name in ("dbb_avg", "dbb_1x1_avg")},
    **{f"{name}.bn.bn.norm": "1x1_avg.inner_norm" for name in ("dbb_avg", "dbb_1x1_avg")},
    **{f"{name}.avgbn.norm": "1x1_avg.norm" for name in ("dbb_avg", "dbb_1x1_avg")},
    "dbb_1x1_kxk.idconv1.weight": "1x1_kxk.reduce.weight",
    "dbb_1x1_kxk.conv1.weight": "1x1_kxk.reduce.weight",
    "dbb_1x1_kxk.bn1.bn.norm": "1x1_kxk.inner_norm",
    "dbb_1x1_kxk.conv2.weight": "1x1_kxk.conv.weight",
    "dbb_1x1_kxk.bn2.norm": "1x1_kxk.norm",
}
EXACT = {
    f"{theirs.removesuffix('norm')}{name}" if theirs.endswith("norm") else theirs: (
        f"{ours}.{name}" if theirs.endswith("norm") else ours
    )
    for theirs, ours in PLACES.items()
    for name in NORM
}


@torch.no_grad()
def load_published(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a plain network the blocks and weights of a published training-time checkpoint.

    In eval mode, the network then computes the same as the published one. Batch norms that the
    checkpoint lacks, because each branch has its own, are removed.

    Args:
        model: A network without blocks whose convs have the paths of the published blocks.
        state: The result of `torch.load`, or its `state_dict`; a prefix `module.` is removed.

    Raises:
        ValueError: the checkpoint has no such blocks, or its blocks do not fit this network, which
            is then as it was.
    """
    surgery.refuse_wrapped(model)
    if blocks(model):
        raise ValueError("this model has blocks already; a checkpoint goes onto a fresh one")
    state = state.get("state_dict", state)  # type: ignore[assignment]
    state = {key.removeprefix("module."): value for key, value in state.items()}
    before = dict(model.named_parameters())
    with all_or_nothing(model):
        if orepa := published_orepa.paths(state):
            behind = published_orepa.place(model, orepa, state)
            _load_strictly(model, dict(published_orepa.translated(model, behind, state)))
        else:
            _place(model, state)
            _load(model, state)
    wrappers.outdate(model, before)


def _place(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    found: dict[str, set[str]] = {}
    for path, part in filter(None, map(_parted, state)):
        found.setdefault(path, set()).add(EXACT[part].partition(".")[0])
    if not found:
        raise ValueError(
            "this checkpoint has no blocks of DBB, DyRep, RepVGG or OREPA as they are in training: "
            f"its keys look like {next(iter(state), 'nothing')}"
        )
    for path in sorted(found, key=lambda path: path.count(".dbb_kxk.conv")):
        here, names = _here(path), in_order([*found[path]])
        try:
            conv = model.get_submodule(here)
        except AttributeError:
            conv = None
        if not isinstance(conv, nn.Conv2d):
            raise ValueError(f"the checkpoint has a block at {path}, this network no convolution")
        if place_block(model, here, names, widen=_widen(state, path, conv)).names != names:
            raise ValueError(f"the convolution {path} cannot have the branches {', '.join(names)}")
    for path, norm in list(model.named_modules()):
        inside = any(path.startswith(f"{_here(block)}.") for block in found)
        if isinstance(norm, _BatchNorm) and not inside and f"{path}.running_mean" not in state:
            surgery.replace(model, path, AbsorbedNorm())


def _widen(state: Mapping[str, Tensor], path: str, conv: nn.Conv2d) -> int:
    """Return the channels inside 1x1_kxk per input channel: 2 on the published depthwise convs."""
    inside = state.get(f"{path}.dbb_1x1_kxk.bn1.bn.weight")
    return 1 if inside is None else max(1, len(inside) // conv.in_channels)


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    _load_strictly(model, dict(_translated(model, state)))
    for key, value in state.items():  # DyRep has biases before the norm of kxk
        path, _, name = key.rpartition(".dbb_kxk.conv.")
        if path and name == "bias":
            block = model.get_submodule(_here(path))
            assert isinstance(block, BatchNormBlock)
            block.kxk.norm.running_mean.sub_(value)  # type: ignore[union-attr]
    for block in blocks(model).values():
        for branch in block.others():
            if _has_border(branch):
                _take_border(branch)


def _load_strictly(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint does not fit this network: {error}") from error


def _translated(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        parted = _parted(key)
        if parted is None:
            if not key.endswith(".dbb_kxk.conv.bias"):
                yield key, value
            continue
        path, part = parted
        if part.endswith("idconv1.weight"):  # published without the identity
            conv = model.get_submodule(f"{_here(path)}.branches.1x1_kxk.reduce")
            assert isinstance(conv, nn.Conv2d)
            value = value + algebra.identity(conv.in_channels, conv.groups, like=value)
        yield f"{_here(path)}.branches.{EXACT[part]}", value


def _has_border(branch: nn.Module) -> TypeGuard[OneByOneKxK | OneByOneAverage]:
    """Whether a branch begins with conv 1x1, BN, behind which the published code pads."""
    chained = isinstance(branch, OneByOneKxK | OneByOneAverage)
    return chained and branches.inner_norm(branch) is not None


def _take_border(branch: OneByOneKxK | OneByOneAverage) -> None:
    """Subtract the effect of the border from the mean of the last norm."""
    _, border = branches.affine(branch.inner_norm)
    if isinstance(branch, OneByOneKxK):
        kernel, _ = branches.conv_equivalent(branch.conv)
        taps = kernel.sum((2, 3)).unflatten(0, (branch.geometry.groups, -1))
        border = (taps @ border.view(branch.geometry.groups, -1, 1)).flatten()
    assert branch.norm.running_mean is not None
    branch.norm.running_mean.copy_(branch.norm.running_mean.double() - border)


def _parted(key: str) -> tuple[str, str] | None:
    """Return the path of the published block and the part of it that a key names, or None."""
    pieces = key.split(".")
    for end in range(len(pieces) - 1, 0, -1):  # the innermost block
        part = ".".join(pieces[end:])
        if part in EXACT:
            return ".".join(pieces[:end]), part
    return None


def _here(path: str) -> str:
    """Return the path here of a published block; DyRep's blocks may be nested in kxk."""
    return path.replace(".dbb_kxk.conv", ".branches.kxk.conv")
