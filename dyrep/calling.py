"""Calling a network with whatever it takes, and finding the tensors in whatever it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Return what a model makes of one tensor, of a tuple of arguments, or of named arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def mapped(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the inputs with every tensor of numbers with a point changed."""

    def each(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tree_map(each, inputs)


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a network returned: in containers, and in attributes of objects."""
    return _tensors(value, set())


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__") and not callable(leaf) and id(leaf) not in seen:
            seen.add(id(leaf))
            yield from _tensors(dict(vars(leaf)), seen)
