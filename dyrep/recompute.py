"""Save memory: recompute cheap activations in backward instead of keeping them.

A block of all branches would keep about ten activations for backward, while a conv keeps one. Most
of them follow from the input of the block, which is kept in any case, by a small convolution, a
normalisation or a pooling. So backward recomputes them. Under `torch.compile` this module does
nothing, because the compiler itself decides which activations to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm

Build = Callable[[], Tensor]
Version = tuple[int, int]  # identity of a tensor, and its version counter
CHEAP = 192  # multiply-adds per output value; below, memory traffic dominates


def is_cheap(conv: nn.Module) -> bool:
    """Whether recomputing the output of a module is cheaper than keeping it."""
    if not isinstance(conv, nn.Conv2d):
        return False
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    return conv.in_channels // conv.groups * taps <= CHEAP


def rebuilt(value: Tensor, build: Build) -> AbstractContextManager[object]:
    """Make autograd call `build` in backward instead of keeping `value`.

    `build` must not hold `value`, or no memory is saved. This does nothing if autograd keeps no
    values, or if torch.func decides which values are kept.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or _in_torch_func():
        return nullcontext()
    address, shape = value.data_ptr(), value.shape

    def pack(saved: Tensor) -> Tensor | Build:
        return build if saved.data_ptr() == address and saved.shape == shape else saved

    def unpack(packed: Tensor | Build) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            return packed()

    return saved_tensors_hooks(pack, unpack)


def again(conv: nn.Module, x: Tensor, output: Tensor) -> Build:
    """Return a function that returns `output`, which is `conv(x)`: kept, or recomputed if cheap.

    A conv that is recomputed must not have a bias.
    """
    x, dtype = x.detach(), output.dtype
    if not is_cheap(conv):
        kept = output.detach()
        return lambda: kept
    assert isinstance(conv, nn.Conv2d)
    # read the tensors now, because after `functional_call` the module has others
    weight = conv.weight.detach()
    before = versions([weight])
    stride, padding, dilation, groups = conv.stride, conv.padding, conv.dilation, conv.groups

    def build() -> Tensor:
        refuse_changed([weight], before)
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.to(dtype), weight.to(dtype), None, stride, padding, dilation, groups)

    return build


def normalised_again(norm: _BatchNorm) -> Callable[[Tensor], Tensor]:
    """Return a function that normalises by batch statistics without updating running ones."""
    weight, bias, eps = norm.weight.detach(), norm.bias.detach(), norm.eps
    before = versions([weight, bias])

    def build(z: Tensor) -> Tensor:
        refuse_changed([weight, bias], before)
        with torch.autocast(z.device.type, enabled=False):
            return F.batch_norm(z, None, None, weight, bias, True, 0.0, eps)

    return build


def versions(tensors: Iterable[Tensor]) -> list[Version]:
    """Return numbers for each tensor that change when the tensor is written to or replaced.

    Tensors of `torch.inference_mode` are skipped, because nothing is recomputed for them. Tensors
    of a compiler are skipped, too: a compiler cannot read the numbers and decides itself what to
    keep.
    """
    if torch.compiler.is_compiling():
        return []
    return [(id(t), 0 if t.is_inference() else t._version) for t in tensors]


def refuse_changed(tensors: Iterable[Tensor], before: list[Version]) -> None:
    """Refuse to recompute with changed weights, as autograd does for tensors that it keeps.

    Raises:
        RuntimeError: the weights have changed since the forward.
    """
    if versions(tensors) != before:
        raise RuntimeError("the weights of a block were changed between forward and backward")


def in_backward() -> bool:
    """Whether autograd is running a backward, as when `torch.utils.checkpoint` recomputes."""
    return torch._C._current_graph_task_id() != -1


def _in_torch_func() -> bool:
    return torch._C._are_functorch_transforms_active()
