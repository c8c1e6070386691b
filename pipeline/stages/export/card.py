"""Make the model card: it describes a network, its inputs and outputs, accuracy and origin.

Every exported file contains the card as JSON; `MODEL_CARD.md` is the same card for people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NotRequired, TypedDict

from pipeline.config.base import Values
from pipeline.config.model import BEGUN
from pipeline.contract.stage import Context
from pipeline.data import preprocess
from pipeline.data.preprocess import Preprocessing
from pipeline.data.shards import Manifest
from pipeline.display.masking import masked
from pipeline.display.outside import code
from pipeline.display.outside import markdown as shown
from pipeline.records import provenance, store
from pipeline.records.schemas import Result
from pipeline.stages.export.write import Outcome


class Port(TypedDict):
    """An input or output: its name, and its shape (a batch of any size)."""

    name: str
    shape: list[str | int]


class Input(Port):
    """Images (N, C, H, W)."""

    dtype: str


class Output(Port):
    """Scores (N, classes)."""

    what: str


class Headline(TypedDict):
    """Accuracy on the validation images in percent, the epoch if one was chosen, and size."""

    top1: float
    top5: float
    epoch: NotRequired[float]
    images: int
    parameters: float
    flops: float


class Origin(TypedDict):
    """The data that the network was trained on."""

    name: str
    fingerprint: str
    train_images: int


class Proof(TypedDict):
    """The difference between fused and unfused network, and the number of compared images."""

    max_rel_error: float
    fold_bn: bool
    images: int


class Card(TypedDict):
    """The description of a network."""

    architecture: Values
    input: Input
    output: Output
    preprocess: Preprocessing
    metrics: Headline
    data: Origin
    fusion: Proof
    source: str
    start: NotRequired[str | None]
    licence: str | None
    versions: dict[str, str]


COLOURS = {"RGB": "RGB", "L": "grey (colours as their luminance, Pillow's mode L)"}


def describe(context: Context, fusion: Mapping[str, float], images: int) -> Card:
    """Return the card of the network that a fuse stage makes.

    Args:
        context: the context of the stage.
        fusion: the metrics of the stage.
        images: number of images on which fused and unfused network were compared.
    """
    config = context.config
    prepared = context.parents["prep"] / "data"
    manifest = Manifest.load(prepared)
    trained = store.read(Result, context.parents["train"]).metrics
    data = config.data
    shape: list[str | int] = ["batch", data.channels, data.image_size, data.image_size]
    headline: Headline = {
        "top1": trained["top1"],
        "top5": trained["top5"],
        "images": manifest.splits["val"].images,
        "parameters": fusion["parameters"],
        "flops": fusion["flops"],
    }
    if "shipped_epoch" in trained:
        headline["epoch"] = trained["shipped_epoch"]
    return {
        "architecture": masked(config.model.model_dump(mode="json", exclude=set(BEGUN))),
        "input": {"name": "images", "shape": shape, "dtype": "float32"},
        "output": {"name": "scores", "shape": ["batch", len(manifest.classes)], "what": "logits"},
        "preprocess": preprocess.describe(data, manifest),
        "metrics": headline,
        "data": {
            "name": data.name,
            "fingerprint": prepared.resolve().name,
            "train_images": manifest.splits["train"].images,
        },
        "fusion": {
            "max_rel_error": fusion["max_rel_error"],
            "fold_bn": config.fuse.fold_bn,
            "images": images,
        },
        "source": context.parents["train"].resolve().name,
        "start": config.model.pretrained_sha256,
        "licence": config.fuse.licence,
        "versions": provenance.versions(),
    }


def markdown(card: Card, exports: dict[str, Outcome]) -> str:
    """Return the card as a Markdown page."""
    spec, metrics, data = card["preprocess"], card["metrics"], card["data"]
    files = [
        f"| `{outcome['file']}` | {outcome['max_rel_error']:.1e} | {outcome['flips']} |"
        for outcome in exports.values()
        if "max_rel_error" in outcome
    ]
    begun = card.get("start")
    return "\n".join(
        [
            f"# {shown(card['architecture']['name'])} on {shown(data['name'])}",
            "",
            f"- **Accuracy** top-1 {metrics['top1']:.2f} %, top-5 {metrics['top5']:.2f} % on "
            f"{metrics['images']:,} validation images{_chosen(metrics)}",
            f"- **Size** {metrics['parameters']:,.0f} parameters, {metrics['flops']:,.0f} FLOPs "
            "per image",
            f"- **In** `images`, float32 {card['input']['shape']}: {COLOURS[spec['colour']]}, "
            f"short side scaled to {spec['resize']} pixels ({spec['interpolation']}, antialiased), "
            f"middle {spec['image_size']}, values 0 to 1, less {_numbers(spec['mean'])}, over "
            f"{_numbers(spec['std'])}",
            f"- **Out** `scores` {card['output']['shape']}, logits of: "
            f"{', '.join(shown(str(name)) for name in spec['classes'][:20])}"
            f"{', …' if len(spec['classes']) > 20 else ''}",
            f"- **Data** {shown(data['name'])}, {data['train_images']:,} training images, prepared "
            f"as {code(data['fingerprint'])}",
            f"- **Trained** by {code(card['source'])}; fused with a relative error of "
            f"{card['fusion']['max_rel_error']:.1e} in float64",
            *([f"- **Started** from weights of SHA-256 {code(begun)}"] if begun else []),
            f"- **Licence** {shown(card['licence'] or 'not stated')}",
            f"- **Architecture** {code(json.dumps(card['architecture']))}",
            "",
            "| file | largest relative error | predictions that differ |",
            "|---|---|---|",
            *files,
            "",
            f"Errors are against the fused network in float32, on {card['fusion']['images']} "
            "validation images, each file loaded by its own runtime in a process of its own.",
            "`model.safetensors` holds the weights under the architecture's own keys.",
            "",
        ]
    )


def _chosen(metrics: Headline) -> str:
    if "epoch" not in metrics:
        return ""
    return f"; epoch {metrics['epoch']:.0f}, chosen as the best on these images"


def _numbers(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
