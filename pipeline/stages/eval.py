"""eval: accuracy of the unfused and of the fused network on the validation split.

Reads the prepared data and both networks. Writes predictions.safetensors: per image its number,
label and the classes both networks put first. Fails when an image was seen twice or not at all,
with any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline import networks, rundir
from pipeline.data.loader import Part, make
from pipeline.data.shards import Manifest
from pipeline.errors import Interrupted
from pipeline.stage import Context
from pipeline.training.distributed import World, world

TOP = 5


def run(context: Context) -> dict[str, float]:
    """Evaluate; return percentages and the number of images."""
    with world(context.config.cluster.hang_timeout) as processes:
        part = torch.cat(list(_predictions(context, processes)))
        rows = torch.cat(processes.gather(part.cpu()))
    rows = rows[rows[:, 0].argsort()]
    images = Manifest.load(networks.prepared(context)).splits["val"].images
    _check_each_once(rows[:, 0], images)
    number, label, unfused, fused = rows.split([1, 1, TOP, TOP], dim=1)
    if processes.main:
        table = {"number": number, "label": label, "unfused": unfused, "fused": fused}
        with rundir.replacing(context.dir / "predictions.safetensors") as temporary:
            save_file({name: column.contiguous() for name, column in table.items()}, temporary)
    return {
        **accuracy("unfused", unfused, label),
        **accuracy("fused", fused, label),
        "agreement": 100 * (unfused[:, 0] == fused[:, 0]).double().mean().item(),
        "images": images,
    }


@torch.no_grad()
def _predictions(context: Context, processes: World) -> Iterator[Tensor]:
    """Yield per batch the rows (number, label, 5 x unfused, 5 x fused), int64."""
    models = [networks.trained(context), networks.fused(context)]
    for model in models:
        model.to(processes.device)
    data = context.config.data
    part = Part(
        folder=networks.prepared(context),
        split="val",
        batch_size=context.config.eval.batch_size // processes.world_size,
        image_size=data.image_size,
        resize=data.short_side,
        augment=None,
        rank=processes.rank,
        world_size=processes.world_size,
        device=processes.device,
    )
    loader = make(data.loader, part)
    for done, (images, labels, numbers) in enumerate(loader):
        if processes.any(context.stop_requested())[0]:
            raise Interrupted
        if processes.main:
            context.progress(done, len(loader), "evaluating")
        best = [first_classes(model(images)) for model in models]
        yield torch.cat([numbers[:, None], labels[:, None], *best], dim=1)


def first_classes(scores: Tensor) -> Tensor:
    """Return the five best classes (N, 5); -1 fills up where there are fewer classes."""
    best = scores.topk(min(TOP, scores.shape[1]), dim=1).indices
    return torch.nn.functional.pad(best, (0, TOP - best.shape[1]), value=-1)


def accuracy(name: str, best: Tensor, label: Tensor) -> dict[str, float]:
    """Return top-1 and top-5 accuracy in percent."""
    hits = best == label
    return {
        f"{name}/top1": 100 * hits[:, 0].double().mean().item(),
        f"{name}/top5": 100 * hits.any(dim=1).double().mean().item(),
    }


def _check_each_once(numbers: Tensor, images: int) -> None:
    seen = numbers.unique()
    if len(numbers) != images or len(seen) != images:
        raise RuntimeError(
            f"the loader gave {len(numbers)} images, {len(seen)} different ones, of {images}"
        )
