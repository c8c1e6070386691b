"""Apply torch.compile to a network that changes during training.

Modules are compiled in place: names of parameters stay, and compilation is undone before a change
of structure. torch caches compiled code by its guards, so after the change it compiles only what
differs. `train.compile=blocks` compiles each block by itself (`networks.layers.blocks`), `model`
the whole network.

Only training steps run compiled code; a validation would compile everything once more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from pipeline.config.train import Train
from pipeline.display.errors import UserError, gist
from pipeline.networks.layers import blocks

BACKEND = "inductor"
VARIANTS = 100_000  # torch allows 8 per function by default, and all modules share one function


class Compiler:
    """Compiles one network according to `train.compile`, and measures the time.

    Raises:
        UserError: the network trains on the CPU, and there is no C++ compiler.
    """

    def __init__(self, recipe: Train, device: torch.device) -> None:
        self.mode = recipe.compile
        self._compiled: list[nn.Module] = []
        self._reported = 0.0
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
        """Mark a network to be compiled at its next training step."""
        if self.mode != "off":
            self._compiled = [model] if self.mode == "model" else list(blocks(model))
        for module in self._compiled:
            module.compile(backend=BACKEND, dynamic=False)

    def remove(self) -> None:
        """Undo `apply`."""
        for module in self._compiled:
            module._compiled_call_impl = None
        self._compiled = []

    def log_line(self, seconds: float) -> str:
        """Return a line about the time spent compiling."""
        return f"train.compile={self.mode}: compiling took {seconds:.1f} s"

    def lacking(self) -> str:
        """Return a note if there is nothing to compile, else an empty text."""
        if self.mode == "off" or self._compiled:
            return ""
        return (
            "train.compile=blocks: this network has no blocks, nothing is compiled until a "
            "convolution has branches; train.compile=model compiles it whole"
        )

    def aside(self) -> AbstractContextManager[object]:
        """Return a context in which a network runs uncompiled."""
        if self.mode == "off":
            return nullcontext()
        return torch.compiler.set_stance("force_eager")

    def seconds(self) -> float:
        """Return the seconds spent compiling since the last call."""
        if self.mode == "off":
            return 0.0
        from torch._dynamo.utils import calculate_time_spent

        spent = calculate_time_spent()["total_wall_time"]
        new, self._reported = spent - self._reported, spent
        return new

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn a compilation failure into a one-line error.

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
