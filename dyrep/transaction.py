"""Make changes of networks atomic: complete, or undone on an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

TABLES = ("_modules", "_parameters", "_buffers")


@contextmanager
def all_or_nothing(*models: nn.Module, values: bool = True) -> Iterator[None]:
    """Restore networks if the body of the `with` statement raises.

    Args:
        models: Networks whose modules, parameters and attributes are restored as the same objects.
        values: Whether to restore the values of all tensors, too, for changes that write to them.
    """
    modules = [module for model in models for module in model.modules()]
    attributes = [dict(vars(module)) for module in modules]
    tables = [[dict(vars(module)[name]) for name in TABLES] for module in modules]
    tensors = [t for model in models for t in (*model.parameters(), *model.buffers())]
    copies = [t.detach().clone() for t in tensors] if values else []
    try:
        yield
    except BaseException:
        for module, known, contents in zip(modules, attributes, tables, strict=True):
            vars(module).clear()
            vars(module).update(known)
            for name, content in zip(TABLES, contents, strict=True):
                table = vars(module)[name]
                table.clear()
                table.update(content)
        with torch.no_grad():
            for tensor, copied in zip(tensors, copies, strict=False):
                tensor.copy_(copied)
        raise
