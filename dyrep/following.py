"""Which batch norm follows which convolution, as the network really computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from dyrep.base import RepBlock

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def following_norms(model: nn.Module, inputs: Tensor) -> dict[str, str]:
    """Return the path of each conv or block whose output goes to one batch norm and nowhere else.

    The value is the path of that norm. Read from the autograd graph of one forward in eval mode, so
    functions between modules count as much as modules; a conv that is called twice is left out.

    Args:
        model: Any network; left as it was.
        inputs: A batch of it, of which the first image is used.
    """
    made: dict[Node, str] = {}
    taken: dict[Node, str] = {}
    calls: Counter[str] = Counter()

    def note_conv(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            calls[path] += 1
            if output.grad_fn is not None:
                made[output.grad_fn] = path

        return hook

    def note_norm(path: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            calls[path] += 1
            if arguments[0].grad_fn is not None:
                taken[arguments[0].grad_fn] = path

        return hook

    handles = []
    for path, module in model.named_modules():
        if type(module) is nn.Conv2d or isinstance(module, RepBlock):
            handles.append(module.register_forward_hook(note_conv(path)))
        elif type(module) in NORMS and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(note_norm(path)))
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.enable_grad():
            first = inputs[:1].detach().clone()
            output = model(first.requires_grad_(first.is_floating_point()))
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in flags.items():
            module.training = flag
    readers = Counter(node for reader in _graph(output) for node, _ in reader.next_functions)
    return {
        path: taken[node]
        for node, path in made.items()
        if node in taken and readers[node] == 1 and calls[path] == calls[taken[node]] == 1
    }


def _graph(output: Any) -> Iterator[Node]:
    """Yield every node of the autograd graph behind an output, once."""
    waiting = [t.grad_fn for t in tree_leaves(output) if isinstance(t, Tensor) and t.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)
