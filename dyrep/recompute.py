"""Memory for little time: what is cheap to compute is computed again in backward, not kept.

A block of seven branches would keep about ten activations for backward where a conv keeps one. Most
of them are a small convolution, a normalisation or a pooling away from the input of the block,
which is kept in any case: backward builds them anew. Under `torch.compile` nothing is done here,
because the compiler decides itself what to keep.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm

Build = Callable[[], Tensor]
CHEAP = 192  # multiply-adds per output value: below, moving the data costs more than computing it


def is_cheap(conv: nn.Module) -> bool:
    """Return whether computing the output of a module once more is cheaper than keeping it."""
    if not isinstance(conv, nn.Conv2d):
        return False
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    return conv.in_channels // conv.groups * taps <= CHEAP


def rebuilt(value: Tensor, build: Build) -> AbstractContextManager[object]:
    """Where autograd would keep `value` for backward, let it call `build` then.

    `build` must not hold `value`, or nothing is gained.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    place, shape = value.data_ptr(), value.shape

    def pack(saved: Tensor) -> Tensor | Build:
        return build if saved.data_ptr() == place and saved.shape == shape else saved

    def unpack(packed: Tensor | Build) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            return packed()

    return saved_tensors_hooks(pack, unpack)


def again(conv: nn.Module, x: Tensor, output: Tensor) -> Build:
    """Return how to have `conv(x)`, which is `output`, once more: kept, or computed where cheap.

    A conv that is computed again must have no bias.
    """
    x, dtype = x.detach(), output.dtype
    if not is_cheap(conv):
        kept = output.detach()
        return lambda: kept
    assert isinstance(conv, nn.Conv2d)
    before = versions(conv)

    def build() -> Tensor:
        refuse_changed(conv, before)
        with torch.autocast(x.device.type, enabled=False):
            weight = conv.weight.to(dtype)
            return F.conv2d(
                x.to(dtype), weight, None, conv.stride, conv.padding, conv.dilation, conv.groups
            )

    return build


def normalise_again(norm: _BatchNorm, z: Tensor) -> Tensor:
    """Return z normalised by its own statistics, as in training, without updating running ones."""
    with torch.autocast(z.device.type, enabled=False):
        return F.batch_norm(z, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)


def versions(module: nn.Module) -> list[int]:
    """Return a number per parameter that changes when its value does."""
    return [parameter._version for parameter in module.parameters()]


def refuse_changed(module: nn.Module, before: list[int]) -> None:
    """Refuse to compute again with other weights, as autograd does for what it keeps itself.

    Raises:
        RuntimeError: the parameters are not those of the forward any more.
    """
    if versions(module) != before:
        raise RuntimeError("the weights of a block were changed between forward and backward")
