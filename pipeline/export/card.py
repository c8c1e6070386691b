"""The model card: what a file is, what goes in, what comes out, how good it is, whence it came.

Every file carries it as JSON; `MODEL_CARD.md` is the same for people.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.contract.stage import Context
from pipeline.data import preprocess
from pipeline.data.shards import Manifest
from pipeline.display.outside import code
from pipeline.display.outside import markdown as shown
from pipeline.records import provenance, store
from pipeline.records.schemas import Result


def describe(context: Context, fusion: dict[str, Any]) -> dict[str, Any]:
    """Return the card of the network that a fuse stage makes."""
    config = context.config
    prepared = context.parents["prep"] / "data"
    manifest = Manifest.load(prepared)
    trained = store.read(Result, context.parents["train"]).metrics
    size = config.data.image_size
    return {
        "architecture": config.model.model_dump(mode="json"),
        "input": {"name": "images", "shape": ["batch", 3, size, size], "dtype": "float32"},
        "output": {"name": "scores", "shape": ["batch", len(manifest.classes)], "what": "logits"},
        "preprocess": preprocess.describe(config.data, manifest),
        "metrics": {
            "top1": trained["top1"],
            "top5": trained["top5"],
            **({"epoch": trained["shipped_epoch"]} if "shipped_epoch" in trained else {}),
            "images": manifest.splits["val"].images,
            "parameters": fusion["parameters"],
            "flops": fusion["flops"],
        },
        "data": {
            "name": config.data.name,
            "fingerprint": prepared.resolve().name,
            "train_images": manifest.splits["train"].images,
        },
        "fusion": {key: fusion[key] for key in ("max_rel_error", "fold_bn", "images")},
        "source": context.parents["train"].resolve().name,
        "licence": config.fuse.licence,
        "versions": provenance.versions(),
    }


def markdown(card: dict[str, Any], exports: dict[str, dict[str, Any]]) -> str:
    """Return the card as a page."""
    told, metrics, data = card["preprocess"], card["metrics"], card["data"]
    files = [
        f"| `{outcome['file']}` | {outcome['max_rel_error']:.1e} | {outcome['flips']} |"
        for outcome in exports.values()
        if "max_rel_error" in outcome
    ]
    return "\n".join(
        [
            f"# {shown(card['architecture']['name'])} on {shown(data['name'])}",
            "",
            f"- **Accuracy** top-1 {metrics['top1']:.2f} %, top-5 {metrics['top5']:.2f} % on "
            f"{metrics['images']:,} validation images{_chosen(metrics)}",
            f"- **Size** {metrics['parameters']:,.0f} parameters, {metrics['flops']:,.0f} FLOPs "
            "per image",
            f"- **In** `images`, float32 {card['input']['shape']}: RGB, short side scaled to "
            f"{told['resize']} pixels ({told['interpolation']}, antialiased), middle "
            f"{told['image_size']}, values 0 to 1, less {_numbers(told['mean'])}, over "
            f"{_numbers(told['std'])}",
            f"- **Out** `scores` {card['output']['shape']}, logits of: "
            f"{', '.join(shown(str(name)) for name in told['classes'][:20])}"
            f"{', …' if len(told['classes']) > 20 else ''}",
            f"- **Data** {shown(data['name'])}, {data['train_images']:,} training images, prepared "
            f"as {code(data['fingerprint'])}",
            f"- **Trained** by {code(card['source'])}; fused with a relative error of "
            f"{card['fusion']['max_rel_error']:.1e} in float64",
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


def _chosen(metrics: dict[str, Any]) -> str:
    if "epoch" not in metrics:
        return ""
    return f"; epoch {metrics['epoch']:.0f}, chosen as the best on these images"


def _numbers(values: list[float]) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
