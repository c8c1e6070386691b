"""fuse: fold every branch into the plain network, and prove on real images that it is the same.

Reads the trained network and validation images. Writes model.safetensors (the plain architecture's
own keys, float32), fusion.json (errors) and preprocess.json (what an image goes through before it).
Fails with `dyrep.FusionError`, naming the layer, above `fuse.tolerance`.
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file

import dyrep
from pipeline import networks, rundir
from pipeline.data import preprocess
from pipeline.data.shards import Manifest
from pipeline.stage import Context


def run(context: Context) -> dict[str, float]:
    """Fuse and compare in float64; return errors and sizes."""
    settings = context.config.fuse
    unfused = networks.trained(context).double().eval()
    images = networks.validation_images(context, settings.images).double()
    context.progress(0, 2, "fusing in float64")
    fused = dyrep.fuse(unfused, tolerance=settings.tolerance, inputs=images)
    context.progress(1, 2, "comparing")
    metrics = compare(unfused, fused, images)
    rundir.write_json(context.dir / "fusion.json", {**metrics, "images": len(images)})
    manifest = Manifest.load(networks.prepared(context))
    told = preprocess.describe(context.config.data, manifest)
    rundir.write_json(context.dir / preprocess.FILE, told)
    with rundir.replacing(context.dir / "model.safetensors") as temporary:
        state = fused.float().state_dict()
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
    context.progress(2, 2)
    return metrics


@torch.no_grad()
def compare(
    unfused: torch.nn.Module, fused: torch.nn.Module, images: torch.Tensor
) -> dict[str, float]:
    """Return the largest differences of the scores, relative to the largest score, and sizes."""
    expected, actual = unfused(images), fused(images)
    difference = (expected - actual).abs().max()
    before, after = dyrep.cost(unfused, images), dyrep.cost(fused, images)
    return {
        "max_abs_error": difference.item(),
        "max_rel_error": (difference / expected.abs().max()).item(),
        "parameters": after.parameters,
        "parameters_unfused": before.parameters,
        "flops": after.flops,
        "flops_unfused": before.flops,
    }
