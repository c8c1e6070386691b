"""Measure accuracy and loss of a network on a split; each image counts once over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pipeline.contract.world import World
from pipeline.data.loaders.base import Batch


@torch.no_grad()
def validate(
    model: nn.Module,
    batches: Iterable[Batch],
    world: World,
    autocast: AbstractContextManager[None],
    check_stop: Callable[[], None],
) -> dict[str, float]:
    """Return `top1`, `top5` (percent) and `val_loss` (mean cross entropy); collective.

    `check_stop` is called before each batch and may raise.
    """
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    for batch in batches:
        check_stop()
        with autocast:
            scores = model(batch.images).float()
        hits = scores.topk(min(5, scores.shape[1]), dim=1).indices == batch.labels[:, None]
        sums[0] += cross_entropy(scores, batch.labels, reduction="sum")
        sums[1] += hits[:, 0].sum()
        sums[2] += hits.sum()
        sums[3] += len(hits)
    loss, first, five, count = world.total(sums).tolist()
    return {"val_loss": loss / count, "top1": 100 * first / count, "top5": 100 * five / count}
