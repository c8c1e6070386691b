"""The networks earlier stages left behind, and the images to try them on."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import dyrep
from pipeline import models, rundir
from pipeline.data.loader import Part, make
from pipeline.data.shards import Manifest
from pipeline.stage import Context


def prepared(context: Context) -> Path:
    """Return the folder of the prepared data."""
    return context.parents["prep"] / "data"


def plain(context: Context) -> nn.Module:
    """Return the plain architecture with fresh weights."""
    return models.build(context.config.model, len(Manifest.load(prepared(context)).classes))


def trained(context: Context) -> nn.Module:
    """Return the trained network with all its branches, in eval mode."""
    folder = context.parents["train"]
    model = plain(context)
    dyrep.apply_structure(model, rundir.read_json(folder / "structure.json"))
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return model.eval()


def fused(context: Context) -> nn.Module:
    """Return the plain architecture with the folded weights, in eval mode."""
    state = load_file(context.parents["fuse"] / "model.safetensors")
    model = plain(context)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and f"{name}.bias" in state:
            module.bias = nn.Parameter(torch.zeros(module.out_channels))  # folding left one
        if isinstance(module, nn.BatchNorm2d) and f"{name}.running_mean" not in state:
            model.set_submodule(name, nn.Identity())  # a static block had its place
    model.load_state_dict(state, strict=True)
    return model.eval()


def validation_images(context: Context, count: int) -> Tensor:
    """Return the first validation images (N ≤ count, 3, H, W), prepared as for evaluation."""
    data = context.config.data
    part = Part(
        folder=prepared(context),
        split="val",
        batch_size=count,
        image_size=data.image_size,
        resize=data.short_side,
        augment=None,
    )
    return next(iter(make(data.loader, part))).images
