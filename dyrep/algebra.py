"""Compute the linear algebra of re-parameterization, as functions of tensors.

Kernels are (out, in/groups, kh, kw), biases (out,). All functions are meant for float64, in which
folding is exact to about 1e-15. Modules call these functions; tests check them alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def scale_and_shift(
    mean: Tensor, var: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the affine map of a batch norm with fixed statistics: y = scale * x + shift."""
    scale = (var + eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale
    return scale, shift if beta is None else shift + beta


def then_affine(
    kernel: Tensor, bias: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a conv followed by a per-channel affine map, as one conv (Ding et al., CVPR 2021)."""
    return kernel * scale[:, None, None, None], bias * scale + shift


def chain(first: Tensor, second: Tensor, groups: int) -> Tensor:
    """Return a 1x1 conv followed by a kxk conv of the same groups, as one kxk conv.

    Neither conv has a bias, so both may be padded with zeros (Ding et al., CVPR 2021).
    """
    merged = rows(second, groups) @ columns(first, groups)
    return from_rows(merged, second.shape[2:])


def rows(kernel: Tensor, groups: int) -> Tensor:
    """Return a kernel as matrices (groups, out/groups * kh * kw, in/groups)."""
    outputs, inputs, height, width = kernel.shape
    last = kernel.permute(0, 2, 3, 1)
    return last.reshape(groups, outputs // groups * height * width, inputs)


def columns(kernel: Tensor, groups: int) -> Tensor:
    """Return a 1x1 kernel as matrices (groups, out/groups, in/groups)."""
    return kernel.reshape(groups, kernel.shape[0] // groups, -1)


def from_rows(matrices: Tensor, size: Sequence[int]) -> Tensor:
    """Return the kernel (out, in/groups, *size) of which `matrices` are the `rows`."""
    return matrices.reshape(-1, *size, matrices.shape[-1]).permute(0, 3, 1, 2)


def embed(kernel: Tensor, size: tuple[int, int], offset: tuple[int, int]) -> Tensor:
    """Return `kernel` placed at `offset` inside a kernel of zeros of `size`."""
    (top, left), (height, width) = offset, kernel.shape[2:]
    if (height, width) == size:
        return kernel
    return F.pad(kernel, (left, size[1] - left - width, top, size[0] - top - height))


def average(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a 1x1 conv followed by average pooling over `size`, as one conv."""
    return (kernel / (size[0] * size[1])).expand(-1, -1, *size)


def identity(channels: int, groups: int, like: Tensor) -> Tensor:
    """Return the 1x1 kernel (channels, channels/groups, 1, 1) that copies its input."""
    per_group = channels // groups
    eye = torch.eye(per_group, dtype=like.dtype, device=like.device).repeat(groups, 1)
    return eye[:, :, None, None]
