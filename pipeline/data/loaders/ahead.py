"""Copy batches to a GPU while it still works on the previous batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from pipeline.data.loaders.base import Batch, Part


def copied(batches: Iterable[Sequence[Tensor]], part: Part) -> Iterator[Batch]:
    """Yield batches on the device of a part, in its layout.

    A training requests the next batch when a step is queued, not when it is finished. Copies and
    layout changes run in a stream of their own, from pinned memory, in parallel to that step.
    """
    if part.device.type != "cuda":
        yield from (part.placed(Batch(*batch)) for batch in batches)
        return
    stream, steps = torch.cuda.Stream(part.device), torch.cuda.current_stream(part.device)
    for batch in batches:
        with torch.cuda.stream(stream):
            placed = part.placed(Batch(*batch))
        steps.wait_stream(stream)
        for tensor in placed:
            tensor.record_stream(steps)  # its memory is reused after the step
        yield placed
