"""Store nested values with tensors as JSON and safetensors, so that reading runs no code."""

from __future__ import annotations

import json
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

END = b"\0"  # key of the JSON part, which needs a tensor name


def dumps(value: Any) -> bytes:
    """Return a value as bytes; it may hold dicts, lists, tuples, tensors and plain values."""
    tree, tensors = pack(value)
    return json.dumps(tree).encode() + END + save(tensors)


def loads(content: bytes) -> Any:
    """Return the value that `dumps` stored, its tensors on the CPU."""
    tree, _, tensors = content.partition(END)
    return unpack(json.loads(tree), load(tensors))


def pack(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return a value as JSON, and its tensors, copied to the CPU, by their path in the value.

    Raises:
        TypeError: the value holds something of another type; the message names its path.
    """
    tensors: dict[str, Tensor] = {}
    return _packed(value, "", tensors), tensors


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the value that was passed to `pack`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in content}
    items = [unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _packed(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON; containers are labelled so that tuples and int keys survive."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": path}
    inner = f"{path}." if path else ""
    if isinstance(value, dict):
        items = [[key, _packed(item, f"{inner}{key}", tensors)] for key, item in value.items()]
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        items = [_packed(item, f"{inner}{index}", tensors) for index, item in enumerate(value)]
        return {type(value).__name__: items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{path} is a {type(value).__name__}, which cannot be packed")
