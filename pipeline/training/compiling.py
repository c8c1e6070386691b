"""torch.compile for a network that changes while it is trained.

Modules are compiled in place: names of parameters stay, and before a change of structure everything
is taken back. What torch has compiled it keeps and finds again by what the code depends on, so
after the change only what differs is compiled. With `train.compile=blocks` that is each block for
itself (`networks.layers.blocks`), with `model` the whole network.

Only training steps run what was compiled. A validation would have all compiled once more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from pipeline.config.train import Train
from pipeline.errors import UserError, gist
from pipeline.networks.layers import blocks

BACKEND = "inductor"
VARIANTS = 100_000  # torch gives up after 8 of one function, and all modules share one


class Compiler:
    """Compiles one network as `train.compile` says, and knows how long that took.

    Raises:
        UserError: there is no C++ compiler for a CPU.
    """

    def __init__(self, recipe: Train, device: torch.device) -> None:
        self.mode = recipe.compile
        self._parts: list[nn.Module] = []
        self._told = 0.0
        if self.mode == "off":
            return
        if device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
            raise UserError(
                f"train.compile={self.mode} needs a C++ compiler on a CPU: apt install g++, or use "
                "train.compile=off"
            )
        from torch._dynamo import config
        from torch._inductor import config as inductor

        config.recompile_limit = config.accumulated_recompile_limit = VARIANTS
        inductor.deterministic = recipe.deterministic

    def apply(self, model: nn.Module) -> None:
        """Have a network compiled when it is next trained."""
        if self.mode != "off":
            self._parts = [model] if self.mode == "model" else list(blocks(model))
        for part in self._parts:
            part.compile(backend=BACKEND, dynamic=False)

    def remove(self) -> None:
        """Leave the network as it was before `apply`."""
        for part in self._parts:
            part._compiled_call_impl = None
        self._parts = []

    def told(self, seconds: float) -> str:
        """Return how long compiling took, as a line."""
        return f"train.compile={self.mode}: compiling took {seconds:.1f} s"

    def lacking(self) -> str:
        """Return what to say if there is nothing to compile, else nothing."""
        if self.mode == "off" or self._parts:
            return ""
        return (
            "train.compile=blocks: this network has no blocks, nothing is compiled until a "
            "convolution has branches; train.compile=model compiles it whole"
        )

    def aside(self) -> AbstractContextManager[object]:
        """Return a context in which a network runs as if it were not compiled."""
        if self.mode == "off":
            return nullcontext()
        return torch.compiler.set_stance("force_eager")

    def seconds(self) -> float:
        """Return how long compiling took since this was last asked."""
        if self.mode == "off":
            return 0.0
        from torch._dynamo.utils import calculate_time_spent

        spent = calculate_time_spent()["total_wall_time"]
        new, self._told = spent - self._told, spent
        return new

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Say of a failure to compile what it is.

        Raises:
            UserError: torch cannot compile the network.
        """
        if self.mode == "off":
            yield
            return
        from torch._dynamo.exc import TorchDynamoException

        try:
            yield
        except TorchDynamoException as error:
            raise UserError(
                f"train.compile={self.mode}: torch cannot compile this network ({gist(error)}); "
                "use train.compile=off"
            ) from error
