"""fuse: fold every branch into the plain network, prove it equal on real images, and export it.

Reads the trained network and images. Writes model.safetensors (the plain architecture's own keys,
float32), fusion.json (errors of each block, ranges of the weights), preprocess.json (the
preparation of an image for it), the exported files and MODEL_CARD.md. If an error exceeds
`fuse.tolerance`, fails with `dyrep.FusionError`, which names the layer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TypedDict

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import dyrep
from dyrep.fusion import plain_state, suspicious_norms
from dyrep.proof import compare_blocks
from pipeline.contract.stage import Context
from pipeline.data import preprocess
from pipeline.data.shards import Manifest
from pipeline.records import disk, rundir
from pipeline.stages import earlier
from pipeline.stages.export import card
from pipeline.stages.export.equalize import weight_ranges
from pipeline.stages.export.formats import Source
from pipeline.stages.export.runtime import CARD
from pipeline.stages.export.verify import Difference
from pipeline.stages.export.write import Outcome, write

SCALED = 32  # images of each kind of scaled input
TOGETHER = 32  # images whose activations are in memory at once
WORST = 5  # blocks that are listed for each kind of input


def run(context: Context) -> dict[str, float]:
    """Fuse, compare and export; return errors and sizes."""
    settings = context.config.fuse
    context.progress(0, 0, "fusing in float64")
    images = earlier.images(context, "val", settings.images)
    unfused = earlier.trained(context)
    suspicious = suspicious_norms(unfused)
    for path, reason in suspicious.items():
        print(f"note: {path}: {reason}")
    exact = _Pair(context, unfused.double(), images)
    kinds = {kind: exact.compare(batch) for kind, batch in _inputs(images)}
    metrics = {
        "max_abs_error": kinds["real"]["max_abs_error"],
        "max_rel_error": max(found["max_rel_error"] for found in kinds.values()),
        "flips": kinds["real"]["flips"],
        **exact.sizes(images),
    }
    fusion = {
        **metrics,
        "images": len(images),
        "tolerance": settings.tolerance,
        "fold_bn": settings.fold_bn,
        "inputs": kinds,
        "suspicious": suspicious,
        "added_biases": exact.added_biases,
        "weights": weight_ranges(exact.deployed),
    }
    rundir.write_json(context.dir / "fusion.json", fusion)
    _gate(kinds, settings.tolerance)
    context.check_stop()

    context.progress(0, 0, "comparing in float32")
    deployed = exact.deployed.float()
    rounded = Difference.between(_scores(unfused.float(), images), _scores(deployed, images))
    metrics |= {f"float32/{name}": value for name, value in rounded.as_dict().items()}
    description = card.describe(context, metrics, len(images))
    with disk.replacing(context.dir / "model.safetensors") as temporary:
        state = {name: _rounded(tensor) for name, tensor in exact.state.items()}
        save_file(state, temporary, {"format": "pt", CARD: json.dumps(description)})
    manifest = Manifest.load(earlier.prepared(context))
    rundir.write_json(
        context.dir / preprocess.FILE, preprocess.describe(context.config.data, manifest)
    )
    outcomes = _export(context, deployed, images, json.dumps(description))
    rundir.write_json(context.dir / "fusion.json", {**fusion, **metrics, "exports": outcomes})
    rundir.write_text(context.dir / "MODEL_CARD.md", card.markdown(description, outcomes))
    return {**metrics, **_export_metrics(outcomes)}


class Compared(TypedDict):
    """The difference between fused and unfused network on one kind of input.

    Errors are the maxima over the scores. `flips` is the number of images whose first class
    differs. `worst` lists the blocks with the largest relative errors.
    """

    max_abs_error: float
    max_rel_error: float
    flips: int
    images: int
    worst: list[tuple[str, float]]


class _Pair:
    """The trained network and the fused one, both in float64."""

    def __init__(self, context: Context, unfused: nn.Module, images: Tensor) -> None:
        settings = context.config.fuse
        self.unfused = unfused
        self.fused = dyrep.fuse(unfused, math.inf)  # `compare` checks it, on real images
        plain = earlier.plain(context).double().eval()
        own = set(plain.state_dict())
        self.state = plain_state(self.fused, plain, images[:1].double())
        self.added_biases = [name for name in self.state if name not in own]
        self.deployed = earlier.load_folded(plain, self.state)
        if settings.fold_bn:
            earlier.folded(self.deployed, context.config.data)

    @torch.no_grad()
    def compare(self, images: Tensor) -> Compared:
        """Return the errors of scores and worst blocks; images are compared a few at a time."""
        errors: dict[str, float] = {}
        expected, actual = [], []
        for batch in images.double().split(TOGETHER):
            blocks, scores = compare_blocks(self.unfused, self.fused, batch)
            errors = {path: max(blocks[path], errors.get(path, 0.0), key=_rank) for path in blocks}
            expected.append(scores)
            actual.append(self.deployed(batch))
        difference = Difference.between(torch.cat(expected), torch.cat(actual))
        worst = sorted(errors.items(), key=lambda item: -_rank(item[1]))[:WORST]
        return {
            "max_abs_error": difference.max_abs_error,
            "max_rel_error": difference.max_rel_error,
            "flips": difference.flips,
            "images": len(images),
            "worst": worst,
        }

    def sizes(self, images: Tensor) -> dict[str, float]:
        """Return parameters and FLOPs per image, unfused and fused."""
        one = images[:1].double()
        before, after = dyrep.cost(self.unfused, one), dyrep.cost(self.deployed, one)
        return {
            "parameters": after.parameters,
            "parameters_unfused": before.parameters,
            "flops": after.flops,
            "flops_unfused": before.flops,
        }


def _inputs(images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield real images, and scaled ones on which cancellation of large numbers would show."""
    yield "real", images
    few = images[:SCALED]
    yield "times 1000", few * 1000
    yield "over 1000", few / 1000
    if images.shape[1] == 3:
        yield "channels apart", few * few.new_tensor([1000, 1, 0.001])[:, None, None]


def _gate(kinds: dict[str, Compared], tolerance: float) -> None:
    """Refuse a fused network that does not equal the trained one.

    Raises:
        dyrep.FusionError: the message names the block, the input, and possible cures.
    """
    for kind, found in kinds.items():
        path, error = found["worst"][0] if found["worst"] else ("the scores", 0.0)
        if error <= tolerance:
            path, error = "the scores", found["max_rel_error"]
        if not error <= tolerance:
            raise dyrep.FusionError(
                f"{path}: fused and unfused differ by {error:.1e} on {kind} inputs (allowed "
                f"{tolerance:.1e}); see fusion.json, or allow it with fuse.tolerance"
            )


def _rank(error: float) -> float:
    return math.inf if math.isnan(error) else error


@torch.inference_mode()
def _scores(network: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([network(batch) for batch in images.split(TOGETHER)])


def _rounded(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()


def _export(context: Context, network: nn.Module, images: Tensor, text: str) -> dict[str, Outcome]:
    """Write the requested formats; print which of them are not written, and why."""
    settings = context.config.fuse
    wanted = list(dict.fromkeys(settings.exports))
    calibration = earlier.images(context, "train", settings.images) if "int8" in wanted else None
    source = Source(
        network=network, images=images[:1], card=text, opset=settings.opset, calibration=calibration
    )
    outcomes: dict[str, Outcome] = {}
    exporting = write(source, context.dir, wanted, images)
    for number, name in enumerate(wanted, start=1):
        context.check_stop()
        context.progress(0, 0, f"exporting {name} ({number} of {len(wanted)})")
        _, outcomes[name] = next(exporting)
        for key, why in outcomes[name].items():
            if key in ("skipped", "failed", "note"):
                print(f"{name} {key}: {why}")
    return outcomes


def _export_metrics(outcomes: dict[str, Outcome]) -> dict[str, float]:
    """Return the errors of each exported file, and the number of files."""
    there = {name: found for name, found in outcomes.items() if "max_rel_error" in found}
    found = {f"{name}/max_rel_error": value["max_rel_error"] for name, value in there.items()}
    return {**found, "exports": len(there), "exports_missing": len(outcomes) - len(there)}
