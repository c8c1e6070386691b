"""eval: measure the unfused, the fused and the exported networks on the validation split.

Reads the prepared data and the networks. Writes predictions.safetensors (per image its number,
label, and of each network the five best classes and the probability of the first) and eval.json
(accuracy per class, calibration, confusion, the most confident mistakes). With any number of
processes, it fails if an image was evaluated twice or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.contract.stage import Context
from pipeline.contract.world import World, world
from pipeline.data.loaders.base import LoaderSpec
from pipeline.data.loaders.choose import make
from pipeline.data.shards import Manifest
from pipeline.display.errors import Interrupted, UserError
from pipeline.records import disk, rundir
from pipeline.stages import earlier
from pipeline.stages.export import runtime
from pipeline.stages.export.formats import FORMATS
from pipeline.stages.metrics import scores
from pipeline.stages.metrics.mistakes import Gallery, Mistake, best
from pipeline.stages.metrics.shifts import SHIFTS, Pixels, Shift

PAIRS = 20  # pairs of classes that are listed as most often confused
SQUARE = 100  # up to so many classes, the whole confusion matrix is written

Candidate = Callable[[Tensor, Tensor], Tensor]  # images and their numbers to scores


def run(context: Context) -> dict[str, float]:
    """Evaluate; return percentages and the number of images."""
    settings = context.config.eval
    runtime.exact_float32()
    manifest = Manifest.load(earlier.prepared(context))
    pixels = Pixels(manifest.mean, manifest.std)
    gallery = Gallery(settings.gallery)
    with world(context.config.cluster.hang_timeout) as processes:
        candidates = _candidates(context, pixels, processes)
        own = torch.cat(list(_rows(context, processes, candidates, pixels, gallery)))
        rows = torch.cat(processes.gather(own.cpu()))
        kept = [one.as_dict() for one in gallery.kept]
        mistakes = [Mistake(**one) for some in processes.gather(kept) for one in some]
    rows = rows[rows[:, 0].argsort()]
    images = manifest.splits["val"].images
    _check_each_once(rows[:, 0], images)
    number, label = rows[:, 0].long(), rows[:, 1].long()
    tables = dict(zip(candidates, rows[:, 2:].split(scores.WIDTH, dim=1), strict=True))
    if processes.main:
        _write_predictions(context, number, label, tables)
        details = _details(tables, label, manifest.classes)
        details["mistakes"] = [one.as_dict() for one in best(mistakes, settings.gallery)]
        rundir.write_json(context.dir / "eval.json", details)
    return {**_metrics(tables, label), "images": images}


def _candidates(context: Context, pixels: Pixels, processes: World) -> dict[str, Candidate]:
    """Return the networks to evaluate, by name, on the device of this process."""
    settings = context.config.eval
    fused = earlier.fused(context).to(processes.device)
    plain: dict[str, Callable[[Tensor], Tensor]] = {
        "unfused": earlier.trained(context).to(processes.device),
        "fused": fused,
    }
    for name in FORMATS if settings.exports else ():
        try:
            if loaded := earlier.exported(context, name):
                plain[name] = loaded.network
        except (ModuleNotFoundError, runtime.Elsewhere) as error:
            print(f"{name} skipped: {error}")
        except ValueError as error:
            raise UserError(str(error)) from error
    found = {name: _unshifted(network) for name, network in plain.items()}
    for shift in settings.shifts:
        found[f"fused/{shift}"] = _shifted(fused, SHIFTS[shift], pixels)
    return found


def _unshifted(network: Callable[[Tensor], Tensor]) -> Candidate:
    return lambda images, numbers: network(images)


def _shifted(network: nn.Module, shift: Shift, pixels: Pixels) -> Candidate:
    return lambda images, numbers: network(pixels.normalised(shift(pixels.of(images), numbers)))


@torch.no_grad()
def _rows(
    context: Context,
    processes: World,
    candidates: dict[str, Candidate],
    pixels: Pixels,
    gallery: Gallery,
) -> Iterator[Tensor]:
    """Yield the rows of each batch, float64: number, label, and 6 columns per candidate."""
    data = context.config.data
    spec = LoaderSpec(
        folder=earlier.prepared(context),
        split="val",
        batch_size=context.config.eval.batch_size // processes.world_size,
        image_size=data.image_size,
        resize=data.short_side,
        augment=None,
        rank=processes.rank,
        world_size=processes.world_size,
        device=processes.device,
        waiting=lambda seconds: context.check_stop(),
    )
    loader = make(data.loader, spec)
    for done, (images, labels, numbers) in enumerate(loader):
        if processes.any(context.stop_requested())[0]:
            raise Interrupted
        if processes.main:
            context.progress(done, len(loader), "evaluating")
        found = {name: scores.answers(judge(images, numbers)) for name, judge in candidates.items()}
        gallery.show(pixels.of(images), labels, numbers, found["fused"])
        yield torch.cat([numbers[:, None], labels[:, None], *found.values()], dim=1)


def _write_predictions(
    context: Context, number: Tensor, label: Tensor, tables: dict[str, Tensor]
) -> None:
    columns = {"number": number[:, None], "label": label[:, None]}
    for name, table in tables.items():
        columns[name] = table[:, : scores.TOP].long()
        columns[f"{name}/confidence"] = table[:, -1:].float()
    with disk.replacing(context.dir / "predictions.safetensors") as temporary:
        save_file({name: column.contiguous() for name, column in columns.items()}, temporary)


def _details(
    tables: dict[str, Tensor], label: Tensor, classes: tuple[str, ...]
) -> dict[str, object]:
    """Return the details for `eval.json`, which people look at."""
    fused, count = tables["fused"], len(classes)
    counts = scores.confusion(fused, label, count)
    return {
        "classes": list(classes),
        "per_class": {n: scores.per_class(t, label, count) for n, t in tables.items()},
        "reliability": {n: scores.reliability(t, label) for n, t in tables.items()},
        "confusion": counts.tolist() if count <= SQUARE else None,
        "most_confused": scores.most_confused(counts, PAIRS),
    }


def _metrics(tables: dict[str, Tensor], label: Tensor) -> dict[str, float]:
    found = {
        f"{name}/{key}": value
        for name, table in tables.items()
        for key, value in scores.accuracy(table, label).items()
    }
    first = tables["fused"][:, 0]
    for name, table in tables.items():
        same = 100 * (table[:, 0] == first).double().mean().item()
        if name == "unfused":
            found["agreement"] = same
        elif name in FORMATS:
            found[f"{name}/agreement"] = same
    return found


def _check_each_once(numbers: Tensor, images: int) -> None:
    seen = numbers.unique()
    if len(numbers) != images or len(seen) != images:
        raise RuntimeError(
            f"the loader gave {len(numbers)} images, {len(seen)} different ones, of {images}"
        )
