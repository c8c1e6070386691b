"""Make the timed variants: forms of the fused network, and networks to compare it with."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.contract.stage import Context
from pipeline.display.errors import gist
from pipeline.stages import earlier
from pipeline.stages.export import runtime
from pipeline.stages.export.formats import FORMATS

COMPILED = ("compiled", "cuda_graphs")
Network = Callable[[Tensor], Tensor]


class Unavailable(Exception):
    """A variant cannot run on this machine; the message says why, and what it needs."""


@dataclass(frozen=True)
class Variant:
    """A network ready to be called; `first_seconds`: time from its file to its first scores."""

    network: Network
    first_seconds: float
    comparable: bool  # whether its predictions should equal those of the fused network
    device: str  # type of the device on which it computes


def make(context: Context, name: str, images: Tensor) -> Variant:
    """Return a variant, after its first inference.

    Args:
        context: the context of the stage.
        name: `fused`, `unfused`, `plain`, or one of `latency.also`.
        images: a batch, on the device to run on.

    Raises:
        Unavailable: the variant cannot run on this machine.
    """
    start = time.perf_counter()
    device = images.device.type
    if name in FORMATS:
        loaded = _exported(context, name)
        network, device = loaded.network, loaded.device or device
    else:
        network = _network(context, name, images.device)
    try:
        infer(network, images)
    except Exception as error:
        if name not in COMPILED:
            raise
        # compilers fail in many ways, e.g. without the headers of Python
        raise Unavailable(f"it cannot be compiled: {gist(error)}") from error
    if images.is_cuda:
        torch.cuda.synchronize()
    first = time.perf_counter() - start
    return Variant(network, first, not name.startswith("plain"), device)


@torch.inference_mode()
def infer(network: Network, images: Tensor) -> Tensor:
    """Return the scores of images."""
    return network(images)


def _network(context: Context, name: str, device: torch.device) -> Network:
    if name == "unfused":
        return earlier.trained(context).to(device)
    if name == "plain":
        return earlier.plain_with_fused_weights(context).to(device)
    if name == "plain_folded":
        usual = earlier.folded(earlier.plain_with_fused_weights(context), context.config.data)
        return usual.to(device)
    fused = earlier.fused(context).to(device)
    if name == "channels_last":
        return partial(_channels_last, fused.to(memory_format=torch.channels_last))
    if name == "bfloat16":
        return partial(_bfloat16, fused.bfloat16())
    if name == "compiled":
        return _compiled(fused, device)
    if name in ("tf32", "cuda_graphs") and device.type != "cuda":
        raise Unavailable("it needs an NVIDIA GPU")
    if name == "tf32":
        return partial(_tf32, fused)
    if name == "cuda_graphs":
        graphed: Network = torch.compile(fused, mode="reduce-overhead", dynamic=False)
        return graphed
    return fused


def _exported(context: Context, name: str) -> runtime.Loaded:
    try:
        loaded = earlier.exported(context, name)
    except (ValueError, ModuleNotFoundError, runtime.Elsewhere) as error:
        raise Unavailable(str(error)) from error
    if loaded is None:
        raise Unavailable(f"{FORMATS[name].file} was not exported; see fuse.exports")
    return loaded


def _compiled(network: nn.Module, device: torch.device) -> Network:
    if device.type == "cpu" and not shutil.which("g++"):
        raise Unavailable("torch.compile on a CPU needs g++: apt install g++")
    compiled: Network = torch.compile(network, dynamic=False)
    return compiled


def _channels_last(network: nn.Module, images: Tensor) -> Tensor:
    scores: Tensor = network(images.contiguous(memory_format=torch.channels_last))
    return scores


def _tf32(network: nn.Module, images: Tensor) -> Tensor:
    """Let convolutions use TF32, which rounds to 10 bits; this is torch's default."""
    torch.backends.cudnn.allow_tf32 = True
    try:
        scores: Tensor = network(images)
        return scores
    finally:
        torch.backends.cudnn.allow_tf32 = False


def _bfloat16(network: nn.Module, images: Tensor) -> Tensor:
    scores: Tensor = network(images.bfloat16())
    return scores.float()
