"""Memory for little time: what is cheap to compute is computed again in backward, not kept.

A block of seven branches keeps about ten activations for backward where a conv keeps one. Six of
them are a 1x1 convolution, a normalisation or a pooling away from the input of the block, which is
kept in any case: backward builds them anew. Under `torch.compile` nothing is done here, because the
compiler decides itself what to keep.
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


def rebuilt(value: Tensor, build: Build) -> AbstractContextManager[object]:
    """Where autograd would keep `value` for backward, let it call `build` then."""
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


def conv_again(conv: nn.Conv2d, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the output of a conv without bias or padding, as autocast gave it: in `dtype`."""
    with torch.autocast(x.device.type, enabled=False):
        weight = conv.weight.to(dtype)
        return F.conv2d(x.to(dtype), weight, None, conv.stride, 0, conv.dilation, conv.groups)


def normalise_again(norm: _BatchNorm, z: Tensor) -> Tensor:
    """Return the output of a batch norm without a second update of its running statistics."""
    with torch.autocast(z.device.type, enabled=False):
        if norm.training:
            return F.batch_norm(z, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
        statistics = norm.running_mean, norm.running_var
        return F.batch_norm(z, *statistics, norm.weight, norm.bias, False, 0.0, norm.eps)
