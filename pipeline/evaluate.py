"""Evaluate a file on prepared images: `python -m pipeline.evaluate FILE --data DIR`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.display import exits
from pipeline.display.errors import DONE, UserError, gist
from pipeline.display.outside import say
from pipeline.records import named, outfile, rundir
from slurm import output

if TYPE_CHECKING:
    from pipeline.stages.metrics.files import Opened


def main(arguments: list[str] | None = None) -> int:
    """Evaluate one file."""
    output.make_safe()
    parser = argparse.ArgumentParser(
        prog=output.program("pipeline.evaluate"),
        description="Evaluate a network on the validation images of any prepared data: an exported"
        "\nfile (.onnx, .pt2, .ts), the weights of a fuse or train stage, or a checkpoint.",
        epilog="Exit codes: 0 done; 2 bad input, e.g. a damaged file, or data of other classes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="e.g. outputs/runs/NAME/fuse/model.onnx"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR",
                        help="prepared data, or a run that has some")  # fmt: skip
    parser.add_argument(
        "--batch-size", type=named.count, default=256, help="images at a time (default: 256)"
    )
    parser.add_argument("--trust", action="store_true",
                        help="run the code that .pt2 and .ts files can hold, as you")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers as JSON")
    options = parser.parse_args(arguments)
    return exits.ending(lambda: _evaluate(options))


def _evaluate(options: argparse.Namespace) -> int:
    rundir.here()  # without a current directory, torch cannot be loaded
    from pipeline.stages.metrics.files import open_file

    outfile.check(options.json)
    folder = _prepared(options.data)
    opened = open_file(options.file, options.trust)
    _check_data(options, opened, folder)
    table, label = _judge(options, opened, folder)
    found = _numbers(table, label, opened.preprocess.classes)
    numbers = (
        f"top-1 {found.top1:.2f} %, top-5 {found.top5:.2f} %, "
        f"calibration error {found.ece:.2f} %, {found.images} images"
    )
    say(f"{options.file}: {numbers}")
    judged = [(value, name) for name, value in found.per_class.items() if value is not None]
    worst = sorted((value, name) for value, name in judged if value < 100)
    names = ", ".join(f"{name} {value:.1f} %" for value, name in worst[:5])
    say(f"worst classes: {names}" if worst else "no image is misclassified")
    if options.json:
        outfile.write(options.json, rundir.to_json(vars(found), indent=2) + "\n")
    return DONE


def _prepared(folder: Path) -> Path:
    """Return the folder of prepared data; `folder` is that folder, or a run that has it."""
    for one in (folder, folder / "prep" / "data"):
        if (one / rundir.MANIFEST).exists():
            return one
    raise UserError(
        f"{folder} holds no prepared data; name a run, or a folder below `data/` in its root "
        "(stage=prep makes them)"
    )


def _check_data(options: argparse.Namespace, opened: Opened, folder: Path) -> None:
    from pipeline.data.shards import Manifest

    manifest, spec = Manifest.load(folder), opened.preprocess
    if spec.channels < manifest.channels:
        raise UserError(
            f"{options.file} is for grey images, {folder} is prepared for RGB; evaluate it on data "
            "prepared with data.channels=1"
        )
    known, there = spec.classes, list(manifest.classes)
    if known != there:
        what = f"{len(known)} classes" if len(known) != len(there) else f"classes {known[:3]}…"
        other = f"{len(there)}" if len(known) != len(there) else f"{there[:3]}…"
        raise UserError(
            f"{options.file} knows {what}, {folder} has {other}; evaluate it on data of its classes"
        )


def _judge(options: argparse.Namespace, opened: Opened, folder: Path) -> Any:
    """Return the answers (N, 6) for all validation images, and their labels (N,)."""
    import torch
    from rich.progress import track

    from pipeline.data.loaders.base import LoaderSpec
    from pipeline.data.loaders.choose import make
    from pipeline.data.shards import Manifest
    from pipeline.stages.export.runtime import exact_float32
    from pipeline.stages.metrics import scores
    from pipeline.stages.metrics.shifts import Pixels

    exact_float32()
    preprocess, manifest = opened.preprocess, Manifest.load(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(opened.network, torch.nn.Module):
        opened.network.to(device)
    spec = LoaderSpec(
        folder=folder, split="val", batch_size=options.batch_size, image_size=preprocess.image_size,
        resize=preprocess.resize, augment=None, device=device,
    )  # fmt: skip
    ours = tuple(manifest.mean), tuple(manifest.std)
    its = tuple(preprocess.mean), tuple(preprocess.std)
    tables, labels = [], []
    with torch.inference_mode():
        for images, label, _ in track(make("auto", spec), "evaluating", transient=True):
            if ours != its:  # the network expects other means, or grey as three equal channels
                images = Pixels(*its).normalised(Pixels(*ours).of(images))
            tables.append(scores.answers(_scores(options.file, opened, images)).cpu())
            labels.append(label.cpu())
    return torch.cat(tables), torch.cat(labels)


def _scores(file: Path, opened: Opened, images: Any) -> Any:
    """Return the scores (N, classes) of images; check them, as files can contradict their card."""
    try:
        found = opened.network(images)
    except Exception as error:  # each runtime has its own error types
        raise UserError(f"{file} does not run on images of its card ({gist(error)})") from error
    expected = len(images), len(opened.preprocess.classes)
    if tuple(found.shape) != expected:
        raise UserError(f"{file} gives scores {tuple(found.shape)}, its card says {expected}")
    return found


@dataclass(frozen=True)
class Numbers:
    """The output of `--json`; accuracies and the calibration error `ece` are in percent."""

    top1: float
    top5: float
    ece: float
    images: int
    per_class: dict[str, float | None]
    reliability: list[dict[str, float]]


def _numbers(table: Any, label: Any, classes: list[str]) -> Numbers:
    from pipeline.stages.metrics import scores

    return Numbers(
        **scores.accuracy(table, label),
        images=len(label),
        per_class=dict(zip(classes, scores.per_class(table, label, len(classes)), strict=True)),
        reliability=scores.reliability(table, label),
    )


if __name__ == "__main__":
    sys.exit(main())
