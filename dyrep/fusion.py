"""Folding all branches of a network into plain convolutions, with proof."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dyrep import algebra, branches, surgery
from dyrep.block import AbsorbedNorm, RepBlock, outer_blocks
from dyrep.following import following_norms


class FusionError(ArithmeticError):
    """The fused network differs from the original; names the worst block and its error."""


@torch.no_grad()
def fuse(
    model: nn.Module,
    tolerance: float = 1e-9,
    inputs: Tensor | None = None,
    fold_bn: bool = False,
) -> nn.Module:
    """Return the plain network: a new module of the original classes, in eval mode.

    The original is untouched. Everything is folded and compared in float64, then rounded to the
    dtype each layer had. Every block is compared with its conv on what it receives from `inputs`,
    or on noise without; with `inputs` the scores are compared too. Errors are relative to the
    largest value. The state loads strictly into the network as it was built, given a bias on the
    convs that got one.

    Args:
        model: A network with blocks, not wrapped.
        tolerance: Largest relative error allowed.
        inputs: A batch of the model.
        fold_bn: Also fold each batch norm that follows a conv into it, and put `nn.Identity` in its
            place; needs `inputs`.

    Raises:
        FusionError: a block, or the network, is off by more than `tolerance`.
        ValueError: `fold_bn` without `inputs`.
    """
    surgery.refuse_wrapped(model)
    if fold_bn and inputs is None:
        raise ValueError("fold_bn needs inputs: a forward shows which norm follows which conv")
    reference = copy.deepcopy(model).double().eval()
    exact = plain_copy(reference)
    errors = block_errors(reference, exact, inputs)
    worst = max(errors, key=lambda path: _rank(errors[path]), default="")
    if errors and not errors[worst] <= tolerance:
        raise FusionError(f"{worst} differs by {errors[worst]:.1e} (allowed {tolerance:.1e})")
    changed = list(errors)
    if inputs is not None:
        inputs = inputs.double()
        if fold_bn:
            changed += fold_norms(exact, inputs)
        outputs = zip(tree_leaves(reference(inputs)), tree_leaves(exact(inputs)), strict=True)
        total = max(relative_error(expected, actual) for expected, actual in outputs)
        if not total <= tolerance:
            raise FusionError(
                f"the scores differ by {total:.1e} (allowed {tolerance:.1e}); worst block: {worst}"
            )
    del reference  # a large network need not be there four times
    fused = plain_copy(model)
    for path in changed:
        dtype = _dtype(model.get_submodule(path))
        surgery.replace(fused, path, exact.get_submodule(path).to(dtype))
    return fused


@torch.no_grad()
def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy with each block folded into its conv, in eval mode; nothing is compared."""
    plain = copy.deepcopy(model).eval()
    for path, block in outer_blocks(plain).items():
        surgery.replace(plain, path, block.fuse().eval())
    for path, module in list(plain.named_modules()):
        if isinstance(module, AbsorbedNorm):
            surgery.replace(plain, path, nn.Identity().eval())
    return plain


@torch.no_grad()
def fold_norms(plain: nn.Module, inputs: Tensor) -> list[str]:
    """Fold each batch norm that follows a conv into it, in place; return the paths changed."""
    changed = []
    for path, norm_path in following_norms(plain, inputs).items():
        conv, norm = plain.get_submodule(path), plain.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        kernel, bias = algebra.then_affine(*branches.conv_equivalent(conv), *branches.affine(norm))
        conv.weight.copy_(kernel)
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype))
        surgery.replace(plain, norm_path, nn.Identity().eval())
        changed += [path, norm_path]
    return changed


def block_errors(reference: nn.Module, fused: nn.Module, inputs: Tensor | None) -> dict[str, float]:
    """Return the relative error of the conv that took the place of each block."""
    outer = outer_blocks(reference)
    received = _received(reference, outer, inputs) if inputs is not None else {}
    errors = {}
    for path, block in outer.items():
        x = received[path] if path in received else _noise(block)
        errors[path] = relative_error(block(x), fused.get_submodule(path)(x))
    return errors


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """Return max |expected - actual| / max |expected|."""
    largest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return ((expected - actual).abs().max() / largest).item()


def _received(model: nn.Module, outer: dict[str, RepBlock], inputs: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    handles = [
        block.register_forward_pre_hook(lambda _, args, path=path: found.update({path: args[0]}))
        for path, block in outer.items()
    ]
    try:
        model(inputs.double())
    finally:
        for handle in handles:
            handle.remove()
    return found


def _noise(block: RepBlock) -> Tensor:
    g = block.geometry
    sides = [d * (k - 1) + 8 for k, d in zip(g.kernel_size, g.dilation, strict=True)]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, g.in_channels, *sides, dtype=torch.float64, generator=generator)
    return noise.to(block.kernel.device)


def _dtype(module: nn.Module) -> torch.dtype | None:
    return next((parameter.dtype for parameter in module.parameters()), None)


def _rank(error: float) -> float:
    return float("inf") if error != error else error  # not-a-number is the worst error
