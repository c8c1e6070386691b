"""Find which batch norm follows which convolution, from the autograd graph of a forward."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from dyrep.base import RepBlock
from dyrep.calling import Inputs, call, mapped, tensors
from dyrep.surgery import replaced

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def following_norms(
    model: nn.Module, inputs: Inputs, fits: Callable[[nn.Module], bool] | None = None
) -> dict[str, str]:
    """Map the path of each conv or block whose only consumer is a batch norm to the norm's path.

    This reads the autograd graph of one forward in eval mode, so functions between modules are
    seen, too. A conv that is called twice is left out.

    Args:
        model: Any network; unchanged.
        inputs: A batch, of which the first image is used; a tuple or a dict holds arguments.
        fits: Whether a norm counts; by default, plain batch norms without hooks count.
    """
    fits = fits or only_normalises
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
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            calls[path] += 1
            if arguments[0].grad_fn is not None:
                taken[arguments[0].grad_fn] = path

        return hook

    inside: list[Node] = []
    sources, norms = [], []  # decided before our hooks are registered
    for path, module in model.named_modules():
        if (type(module) is nn.Conv2d or isinstance(module, RepBlock)) and not replaced(module):
            sources.append((path, module))
        elif fits(module):
            norms.append((path, module))
    handles = [
        *(module.register_forward_hook(note_conv(path)) for path, module in sources),
        *(module.register_forward_pre_hook(note_norm(path)) for path, module in norms),
        *(
            m.register_forward_hook(lambda _, __, y: inside.extend(_nodes(y)))
            for m in model.modules()
        ),
    ]
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            first = inputs[:1] if isinstance(inputs, Tensor) else inputs
            output = call(model, mapped(first, lambda t: t.detach().clone().requires_grad_()))
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in flags.items():
            module.training = flag
    # an output that holds only classes has no graph, but the outputs of its layers have one
    roots = _nodes(output) or inside
    readers = Counter(node for reader in _graph(roots) for node, _ in reader.next_functions)
    return {
        path: taken[node]
        for node, path in made.items()
        if node in taken and readers[node] == 1 and calls[path] == calls[taken[node]] == 1
    }


def only_normalises(module: nn.Module) -> bool:
    """Whether a module is a batch norm with running statistics and nothing else."""
    plain = type(module) in NORMS and module.running_mean is not None
    return plain and not replaced(module)


@torch.no_grad()
def takes_shift(module: nn.Module) -> bool:
    """Whether adding a constant to a norm's input equals subtracting it from the norm's mean.

    This is tried out, because norms of other libraries contain an activation or are frozen.
    """
    mean = getattr(module, "running_mean", None)
    if only_normalises(module):
        return True
    if not isinstance(mean, Tensor) or mean.ndim != 1 or replaced(module):
        return False
    shifted = copy.deepcopy(module).eval().double()
    plain = copy.deepcopy(shifted)
    generator = torch.Generator().manual_seed(0)
    x, shift = (
        torch.randn(shape, dtype=torch.float64, generator=generator).to(mean.device)
        for shape in ((2, len(mean), 3, 3), (len(mean),))
    )
    cast(Tensor, shifted.running_mean).add_(shift)
    try:
        difference = shifted(x + shift[:, None, None]) - plain(x)
    except (RuntimeError, ValueError, TypeError):
        return False
    return bool(difference.abs().max() < 1e-9)


def _nodes(output: Any) -> list[Node]:
    return [tensor.grad_fn for tensor in tensors(output) if tensor.grad_fn]


def _graph(roots: Sequence[Node]) -> Iterator[Node]:
    """Yield every node of the autograd graph that leads to the roots, once."""
    seen = set(roots)
    waiting = list(seen)
    while waiting:
        node = waiting.pop()
        yield node
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)
