"""Call a network with any form of inputs, and find the tensors in any form of output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model with a tensor, a tuple of arguments, or a dict of named arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def mapped(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the inputs with `change` applied to every floating-point tensor."""

    def each(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tree_map(each, inputs)


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in an output, including those in containers and attributes of objects."""
    return _tensors(value, set())


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__") and not callable(leaf) and id(leaf) not in seen:
            seen.add(id(leaf))
            yield from _tensors(dict(vars(leaf)), seen)
