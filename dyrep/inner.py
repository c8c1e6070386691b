"""Define conv 1x1, BN, minus its border: the first layers of two kinds of branches."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dyrep.recompute import (
    Build,
    Version,
    again,
    in_backward,
    normalised_again,
    rebuilt,
    versions,
)


class Inner:
    """conv 1x1, BN, minus its border; backward recomputes the activations that it needs.

    The published code pads the output with the border: the value to which BN maps zero, by its
    running statistics. If the border is subtracted, this padding becomes zero padding, which the
    next conv or pooling does by itself. The next BN removes the constant that is missing then.
    """

    def __init__(self, conv: nn.Module, norm: _BatchNorm, x: Tensor) -> None:
        self._conv, self._norm, self._x = conv, norm, x
        self._z: Tensor | None = None

    def output(self) -> Tensor:
        """Return BN(conv(x)) - BN(0).

        Raises:
            RuntimeError: the norm has no running statistics, or a forward that is repeated in
                backward cannot use its earlier border.
        """
        norm = self._norm
        if norm.running_mean is None or norm.running_var is None:
            raise RuntimeError("the batch norms inside a block need their running statistics")
        z: Tensor = self._conv(self._x)
        self._reduced = again(self._conv, self._x, z)
        del self._x
        before = _versions(self._conv, norm)
        with rebuilt(z, self._take):
            y: Tensor = norm(z)
        if not norm.training or torch.compiler.is_compiling():
            _outdate(norm)
            border = _border(norm)
        else:
            border = _held_border(self._conv, norm, before)
        border = border[:, None, None].to(y.dtype)
        y = y.sub_(border)
        # Recomputing a synchronised norm would need all ranks, and statistics may have moved on.
        keep = isinstance(norm, nn.SyncBatchNorm) or not norm.training
        self._kept = y.detach() if keep else None
        self._normalise: Build | None = None if keep else self._normalised(border.detach())
        return y

    def _normalised(self, border: Tensor) -> Build:
        normalise = normalised_again(self._norm)

        def build() -> Tensor:
            self._z = self._reduced()
            return normalise(self._z).sub_(border)

        return build

    def again(self) -> Tensor:
        """Return the output again, in backward; keep a recomputed conv(x), which BN needs next."""
        if self._kept is not None:
            return self._kept
        assert self._normalise is not None
        return self._normalise()

    def _take(self) -> Tensor:
        z, self._z = self._z, None
        return self._reduced() if z is None else z


class _Held(NamedTuple):
    """The border of a forward in training, kept for a recomputation of that forward.

    `fresh`: whether the next forward may still use it.
    """

    versions: list[Version]
    border: Tensor
    fresh: bool


_HELD: WeakKeyDictionary[nn.Module, _Held] = WeakKeyDictionary()


def _held_border(conv: nn.Module, norm: _BatchNorm, before: list[Version]) -> Tensor:
    """Return the border (channels,) in training, constant while the weights are constant.

    It is treated as a constant, as in the published code. It is kept because
    `torch.utils.checkpoint` recomputes forwards in backward, when running statistics have changed.
    """
    held = _HELD.get(norm)
    known = held is not None and held.versions == before
    if in_backward():
        if held is None or not known:
            raise RuntimeError(
                "a block is recomputed in backward, but the border of its forward is not known any "
                "more: write checkpoint(..., use_reentrant=False), and run no other training "
                "forward without gradients before backward; form='linear' needs neither"
            )
        border, fresh = held.border, held.fresh
    else:
        with torch.no_grad():
            border = held.border if held and known and held.fresh else _border(norm)
        fresh = True
    if torch.is_grad_enabled():
        _HELD[norm] = _Held(_versions(conv, norm), border, fresh)
    else:
        _HELD.pop(norm, None)
    return border


def _outdate(norm: nn.Module) -> None:
    """Make the next forward in training compute a new border; a recomputation keeps the old one."""
    if not torch.compiler.is_compiling() and norm in _HELD:
        _HELD[norm] = _HELD[norm]._replace(fresh=False)


def _border(norm: _BatchNorm) -> Tensor:
    """Return the value to which a batch norm maps zero, by its running statistics."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return norm.bias - norm.running_mean * scale


def _versions(conv: nn.Module, norm: _BatchNorm) -> list[Version]:
    if torch.compiler.is_compiling():
        return []
    tensors = [*conv.parameters(), norm.weight, norm.bias, norm.running_mean, norm.running_var]
    return versions(tensor for tensor in tensors if tensor is not None)
