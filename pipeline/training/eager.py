"""Keep torch's compiler out of a process that compiles nothing.

Torch's optimizers and DistributedDataParallel import `torch._dynamo`, which imports sympy, inductor
and FSDP, a thousand modules in all, for functions that do nothing outside of a compiled graph. That
took 2 of the 6 s of CPU time that a training needs to its first step. This module provides these
functions alone; code that needs anything else of `torch._dynamo` gets the real module.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

NAME = "torch._dynamo"


def put_off_compiler() -> None:
    """Delay the import of `torch._dynamo` from the making of an optimizer to its first real use."""
    if NAME not in sys.modules:
        utils = _Later(f"{NAME}.utils", get_optimize_ddp_mode=lambda: "ddp_optimizer")
        later = _Later(NAME, graph_break=lambda *_, **__: None, disable=_as_it_is, utils=utils)
        sys.modules[NAME] = torch.__dict__["_dynamo"] = later
        sys.meta_path.insert(0, _Imported())


def _as_it_is(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
    return function


class _Later(ModuleType):
    """Replaces a module of `torch._dynamo`; imports the real one for attributes it lacks."""

    def __init__(self, name: str, **known: Any) -> None:
        super().__init__(name)
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        if isinstance(sys.modules.get(NAME), _Later):
            del sys.modules[NAME]
        return getattr(importlib.import_module(self.__name__), name)


class _Imported(MetaPathFinder, Loader):
    """Finds submodules of `torch._dynamo` that the import of the real package has just loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        there = name.startswith(f"{NAME}.") and name in sys.modules
        return ModuleSpec(name, self) if there else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        pass
