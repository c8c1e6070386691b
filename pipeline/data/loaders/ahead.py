"""Copy batches to a GPU while it still works on the previous batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from pipeline.data.loaders.base import Batch, LoaderSpec


def copied(batches: Iterable[Sequence[Tensor]], spec: LoaderSpec) -> Iterator[Batch]:
    """Yield batches on the device and in the layout of a spec.

    A training requests the next batch when a step is queued, not when it is finished. Copies and
    layout changes run in a stream of their own, from pinned memory, in parallel to that step.
    """
    if spec.device.type != "cuda":
        yield from (spec.placed(Batch(*batch)) for batch in batches)
        return
    stream, steps = torch.cuda.Stream(spec.device), torch.cuda.current_stream(spec.device)
    for batch in batches:
        with torch.cuda.stream(stream):
            placed = spec.placed(Batch(*batch))
        steps.wait_stream(stream)
        for tensor in placed:
            tensor.record_stream(steps)  # its memory is reused after the step
        yield placed
