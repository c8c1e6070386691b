"""Fold all branches of a network into plain convolutions, and prove that nothing changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dyrep import algebra, branches, surgery
from dyrep.base import RepBlock
from dyrep.block import AbsorbedNorm, outer_blocks
from dyrep.calling import Inputs, call, mapped
from dyrep.norm_pairs import following_norms, takes_shift
from dyrep.proof import FusionError, compare_blocks, rank, scores_error


@torch.no_grad()
def fuse(
    model: nn.Module,
    tolerance: float = 1e-9,
    inputs: Inputs | None = None,
    fold_bn: bool = False,
) -> nn.Module:
    """Return the plain network: a new module of the original classes, in eval mode.

    The original is unchanged. Folding and comparison are done in float64; the result is rounded to
    the dtype of each layer. Each block is compared with its conv on the activations that `inputs`
    produce, or on noise without `inputs`. With `inputs`, the scores are compared, too. Errors are
    relative to the largest value. The state of the result loads strictly into the network as it was
    built if the convs that got a bias have one there. `plain_state` returns a state without that
    condition.

    Args:
        model: A network with blocks, not wrapped.
        tolerance: Largest relative error allowed.
        inputs: A batch of the model; a tuple or a dict holds its arguments. All tensors of real
            numbers in the output are compared, also in containers and in attributes of objects;
            other tensors (classes, masks) only if there are none of real numbers.
        fold_bn: Whether to fold each batch norm that follows a conv into the conv as well, and to
            replace the norm by `nn.Identity`; needs `inputs`.

    Raises:
        FusionError: a block, or the network, is off by more than `tolerance`, or holds values
            that are not finite.
        ValueError: `fold_bn` is set without `inputs`, or the network cannot run on `inputs` in
            float64, or returns no tensor.
    """
    surgery.refuse_wrapped(model)
    if fold_bn and inputs is None:
        raise ValueError("fold_bn needs inputs: a forward shows which norm follows which conv")
    _refuse_not_finite(model)
    with torch.inference_mode(False):  # tensors made in inference mode could never be trained
        return _fused(model, tolerance, inputs, fold_bn)


def _fused(model: nn.Module, tolerance: float, inputs: Inputs | None, fold_bn: bool) -> nn.Module:
    reference = copied(model).double().eval()
    exact = plain_copy(reference, share=True)  # tensors outside of blocks are shared
    errors, expected = compare_blocks(reference, exact, inputs)
    worst = max(errors, key=lambda path: rank(errors[path]), default="")
    if errors and not errors[worst] <= tolerance:
        raise FusionError(f"{worst} differs by {errors[worst]:.1e} (allowed {tolerance:.1e})")
    del reference  # shares tensors with `exact`, which changes from here on
    changed = list(errors)
    if inputs is not None:
        inputs = mapped(inputs, lambda t: t.double())
        if fold_bn:
            changed += fold_norms(exact, inputs)
        total = scores_error(expected, call(exact, inputs))
        if not total <= tolerance:
            raise FusionError(
                f"the scores differ by {total:.1e} (allowed {tolerance:.1e}); worst block: {worst}"
            )
    fused = plain_copy(model)
    for path in changed:
        dtype = _dtype(model.get_submodule(path))
        surgery.replace(fused, path, exact.get_submodule(path).to(dtype))
    return fused


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy, even of a network with computed weights (pruning, old weight norm).

    Args:
        model: The network; unchanged.
        memo: As in `copy.deepcopy`: objects that are copied already, by `id`.
    """
    made = {} if memo is None else memo
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                made.setdefault(id(value), value.detach().clone())
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_inference() and id(tensor) not in made:
            made[id(tensor)] = _ordinary(tensor)
    return copy.deepcopy(model, made)


def _ordinary(tensor: Tensor) -> Tensor:
    """Return a copy, usable by autograd, of a tensor made in `torch.inference_mode`."""
    value = tensor.clone()
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


@torch.no_grad()
def plain_copy(model: nn.Module, share: bool = False) -> nn.Module:
    """Return a copy with each block folded into its conv, in eval mode; nothing is compared.

    Args:
        model: The network; unchanged.
        share: Whether to share the tensors outside of blocks instead of copying them.
    """
    # deepcopy takes the convs as copies of the blocks, and does not copy the branches
    memo: dict[int, Any] = {id(block): _plain(block) for block in outer_blocks(model).values()}
    if share:
        memo |= {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    plain = copied(model, memo).eval()
    for path, module in list(plain.named_modules()):
        if isinstance(module, AbsorbedNorm):
            surgery.replace(plain, path, nn.Identity().eval())
    return plain


def _plain(block: RepBlock) -> nn.Conv2d:
    conv = block.fuse()
    surgery.hand_on_hooks(block, conv, copied=True)
    return conv


@torch.no_grad()
def fold_norms(plain: nn.Module, inputs: Inputs) -> list[str]:
    """Fold each batch norm that follows a conv into the conv, in place; return changed paths.

    Args:
        plain: A network without blocks, in eval mode.
        inputs: A batch of the network; only its shape matters.
    """
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


@torch.no_grad()
def plain_state(fused: nn.Module, plain: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Return the state of a fused network under the keys of the network as it was built.

    A bias that a conv got by folding moves into the running mean of the batch norm behind it, even
    if that is another library's norm with an activation inside. A batch norm that a static block
    had absorbed comes back as a norm that only adds this bias. If no norm follows, as in DenseNet,
    the bias stays as an additional key.

    Args:
        fused: A result of `fuse` without `fold_bn`.
        plain: The network as it was built; unchanged.
        inputs: A batch of the network; only its shape matters.
    """
    state, known = fused.state_dict(), plain.state_dict()
    for path, norm_path in following_norms(plain, inputs, takes_shift).items():
        conv, norm = fused.get_submodule(path), plain.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv2d)
        bias = state.get(f"{path}.bias", torch.zeros_like(conv.weight[:1, 0, 0, 0]))
        mean = f"{norm_path}.running_mean"
        if mean not in state:
            assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
            state |= {f"{norm_path}.{name}": value for name, value in _doing_nothing(norm, bias)}
        if f"{path}.bias" not in known:
            state[mean] = state[mean] - bias
            state.pop(f"{path}.bias", None)
    return {key: state[key] for key in [*known, *(key for key in state if key not in known)]}


def _doing_nothing(
    norm: nn.modules.batchnorm._BatchNorm, like: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Yield the state of a norm of this kind that returns its input."""
    values = {"weight": 1.0, "running_var": 1 - norm.eps}
    for name, tensor in norm.state_dict().items():
        dtype = like.dtype if tensor.is_floating_point() else tensor.dtype
        yield name, torch.full(tensor.shape, values.get(name, 0), dtype=dtype, device=like.device)


def suspicious_norms(model: nn.Module) -> dict[str, str]:
    """Return the batch norms with implausible statistics, with the reason.

    Folding is exact in any case, but a network with such statistics is probably not the intended
    one.
    """
    found = {}
    for path, norm in model.named_modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_var is not None:
            still = int((norm.running_var == 0).sum())
            if still:
                found[path] = f"{still} of {norm.num_features} channels have a variance of zero"
            elif norm.num_batches_tracked is not None and not norm.num_batches_tracked:
                found[path] = "it never saw a batch in training"
    return found


def _refuse_not_finite(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise FusionError(
                f"{name} holds values that are not finite; go back to a checkpoint from before"
            )


def _dtype(module: nn.Module) -> torch.dtype | None:
    return next((parameter.dtype for parameter in module.parameters()), None)
