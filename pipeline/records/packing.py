"""Nested values with tensors in them as JSON and safetensors: what is read can run no code."""

from __future__ import annotations

import json
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

END = b"\0"  # of the JSON, which has none


def dumps(value: Any) -> bytes:
    """Return a value as bytes: dicts, lists and tuples of tensors and plain values."""
    tree, tensors = pack(value)
    return json.dumps(tree).encode() + END + save(tensors)


def loads(content: bytes) -> Any:
    """Return what `dumps` was given, on the CPU."""
    tree, _, tensors = content.partition(END)
    return unpack(json.loads(tree), load(tensors))


def pack(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return a value as JSON and its tensors, copied to the CPU, by their place in it.

    Raises:
        TypeError: it holds a value of another type; names the place.
    """
    tensors: dict[str, Tensor] = {}
    return _packed(value, "", tensors), tensors


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return what `pack` was given."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in content}
    items = [unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _packed(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON; containers are labelled, so that tuples and int keys come back."""
    if isinstance(value, Tensor):
        tensors[place] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": place}
    inner = f"{place}." if place else ""
    if isinstance(value, dict):
        items = [[key, _packed(item, f"{inner}{key}", tensors)] for key, item in value.items()]
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        items = [_packed(item, f"{inner}{index}", tensors) for index, item in enumerate(value)]
        return {type(value).__name__: items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{place} is a {type(value).__name__}, which cannot be packed")
