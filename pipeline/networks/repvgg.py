"""Convert the network and weights of timm's RepVGG to plain convolutions, and to our branches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dyrep.block import blocks
from dyrep.linear import LinearBlock
from dyrep.linear_branches import LinearIdentity, LinearWindow

BRANCHES = ("conv_kxk.bn", "conv_1x1.bn", "identity")  # batch norms of a block in timm
EPS = 1e-5  # eps of these batch norms


def straighten(network: nn.Module) -> None:
    """Replace each RepVGG block by its 3x3 convolution and norm; `method=` adds branches."""
    from timm.models.byobnet import RepVggBlock

    for path, block in list(network.named_modules()):
        if isinstance(block, RepVggBlock):
            plain = nn.Sequential()
            plain.add_module("conv", block.conv_kxk.conv)
            plain.add_module("norm", nn.BatchNorm2d(block.conv_kxk.conv.out_channels))
            plain.add_module("attn", block.attn)
            plain.add_module("act", block.act)
            network.set_submodule(path, plain)


def branched(name: str, channels: int = 3) -> nn.Module:
    """Return a network of timm with the branches that `straighten` removes."""
    import timm

    with torch.random.fork_rng(devices=[]):
        made: nn.Module = timm.create_model(name, pretrained=False, in_chans=channels)
    return made


@torch.no_grad()
def straightened(held: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Convert weights of a RepVGG with branches to those of the network after `straighten`.

    The function in eval mode stays the same. The batch norm behind each convolution gets the mean
    of the sum of the branches, and the variance that the sum has if the branches are uncorrelated.

    Args:
        held: the weights, by timm's names.
        network: a network from `branched`; its blocks are overwritten.
    """
    from timm.models.byobnet import RepVggBlock

    blocks = {p: block for p, block in network.named_modules() if isinstance(block, RepVggBlock)}
    found = dict(held)
    for path, block in blocks.items():
        own = {key: found.pop(f"{path}.{key}") for key in block.state_dict()}
        block.load_state_dict(own)
        norms = [block.get_submodule(branch) for branch in BRANCHES if _has(block, branch)]
        kernel, bias = block._get_kernel_bias()
        shift = sum(norm.bias for norm in norms)
        variance = sum(norm.weight**2 for norm in norms)
        plain = {
            "conv.weight": kernel,
            "norm.weight": (variance + norms[0].eps).sqrt(),
            "norm.bias": shift,
            "norm.running_mean": shift - bias,
            "norm.running_var": variance,
            **{key: value for key, value in own.items() if key.startswith("attn.")},
        }
        found.update({f"{path}.{key}": value for key, value in plain.items()})
    return found


NAMES = {"conv_kxk.conv": "kxk.conv", "conv_kxk.bn": "kxk.norm", "conv_1x1.conv": "1x1.conv",
         "conv_1x1.bn": "1x1.norm", "identity": "identity.norm"}  # fmt: skip
"""Parts of a block in timm, and in `RepBlock.branches`."""


@torch.no_grad()
def fill(model: nn.Module, held: dict[str, Tensor]) -> int:
    """Give each block of a RepVGG the branches of published weights; return the number of blocks.

    In eval mode, the network then computes the same as the published one; if its blocks have batch
    norms, also in train mode. For linear branches, the published batch norms are folded into
    kernels and strengths.

    Args:
        model: a plain network with the weights of `straightened`, which then got its own branches.
        held: the weights, by timm's names.
    """
    own = {path: block for path, block in blocks(model).items() if block.own}
    for path, block in own.items():
        around = path.removesuffix("conv")
        tensors = {
            f"{ours}.{key.rpartition('.')[2]}": value
            for theirs, ours in NAMES.items()
            for key, value in held.items()
            if key.startswith(f"{around}{theirs}.")
        }
        if isinstance(block, LinearBlock):
            _fill_linear(block, tensors)
        else:
            block.branches.load_state_dict(tensors, strict=False)
    return len(own)


def _fill_linear(block: LinearBlock, tensors: dict[str, Tensor]) -> None:
    for name, branch in block.branches.items():
        spread = (tensors[f"{name}.norm.running_var"] + EPS).sqrt()
        strength = tensors[f"{name}.norm.weight"] / spread
        if isinstance(branch, LinearWindow) and isinstance(branch.conv, nn.Conv2d):
            start = 1.0 if branch.scale is None else branch.scale
            factor = (strength / start)[:, None, None, None]
            branch.conv.weight.copy_(factor * tensors[f"{name}.conv.weight"])
        elif isinstance(branch, LinearIdentity) and branch.scale is not None:
            branch.scale.copy_(strength)


def _has(block: nn.Module, branch: str) -> bool:
    return getattr(block, branch.partition(".")[0]) is not None
