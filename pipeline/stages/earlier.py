"""Load the networks of earlier stages, and the images to try them on."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

import dyrep
from dyrep.fusion import fold_norms
from pipeline.config.data import Images as Settings
from pipeline.contract.stage import Context
from pipeline.data.loaders.base import LoaderSpec
from pipeline.data.loaders.choose import make
from pipeline.data.shards import Manifest
from pipeline.display.errors import UserError
from pipeline.networks import architectures
from pipeline.records import disk, rundir, store
from pipeline.records.schemas import Result
from pipeline.stages.export import runtime
from pipeline.stages.export.formats import FORMATS


def prepared(context: Context) -> Path:
    """Return the folder of the prepared data."""
    return context.parents["prep"] / "data"


def plain(context: Context) -> nn.Module:
    """Return the plain architecture with fresh weights."""
    manifest = Manifest.load(prepared(context))
    return architectures.build(context.config.model, len(manifest.classes), manifest.channels)


def trained(context: Context) -> nn.Module:
    """Return the trained network with all its branches, in eval mode."""
    folder = context.parents["train"]
    model = plain(context)
    dyrep.apply_structure(model, rundir.read_json(folder / "structure.json"))
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return model.eval()


def fused(context: Context) -> nn.Module:
    """Return the network that is shipped, in eval mode."""
    folder = context.parents["fuse"]
    model = load_folded(plain(context), load_file(folder / "model.safetensors"))
    fold = rundir.read_json(folder / "fusion.json")["fold_bn"]
    return folded(model, context.config.data) if fold else model


def exported(context: Context, name: str) -> runtime.Loaded | None:
    """Return the network of an exported file; None if fuse wrote no file of that format.

    Most formats hold code, so the file must have the content that fuse wrote.

    Raises:
        UserError: the file has another content.
        ValueError, ModuleNotFoundError, runtime.Elsewhere: as `runtime.load` raises them.
    """
    folder, file = context.parents["fuse"], FORMATS[name].file
    path = folder / file
    written = store.read(Result, folder).outputs.get(file)
    if not written and not path.exists():
        return None
    if not (written and path.is_file() and disk.sha256(path) == written.sha256):
        raise UserError(
            f"{path} is not as fuse wrote it and is not opened; `rm -r {folder}` and launch again "
            "to rebuild it"
        )
    return runtime.load(path, trust=True)


def plain_with_fused_weights(context: Context) -> nn.Module:
    """Return the plain architecture as it is usually built, with the shipped network's values.

    Times depend on values: with fresh weights, max pooling meets fewer zeros and takes longer.
    """
    model = plain(context)
    state = load_file(context.parents["fuse"] / "model.safetensors")
    own = model.state_dict().keys()
    model.load_state_dict({name: tensor for name, tensor in state.items() if name in own})
    return model.eval()


def load_folded(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Load a result of `dyrep.fusion.plain_state` into the plain architecture; return this."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.bias is None and f"{name}.bias" in state:
            module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels))
    network.load_state_dict(state, strict=True)
    return network.eval()


def folded(network: nn.Module, data: Settings) -> nn.Module:
    """Fold the batch norms of a plain network into their convolutions; return the network."""
    weight = next(network.parameters())
    fold_norms(network.eval(), weight.new_zeros(1, data.channels, *[data.image_size] * 2))
    return network


def images(context: Context, split: str, count: int) -> Tensor:
    """Return the first images of a split (N ≤ count, C, H, W), prepared as for evaluation."""
    data = context.config.data
    spec = LoaderSpec(
        folder=prepared(context),
        split=split,
        batch_size=count,
        image_size=data.image_size,
        resize=data.short_side,
        augment=None,
    )
    return next(iter(make(data.loader, spec))).images
