"""Load pretrained weights into a network, or refuse them and name what differs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.config.base import written
from pipeline.config.model import ASIDE, Custom, MobileNetV1, Model, Timm, Torchvision
from pipeline.config.rules import has_small_stem
from pipeline.display.errors import UserError
from pipeline.networks import architectures, freezing, repvgg, weights
from pipeline.networks.weights import KEY
from pipeline.records import rundir

RGB, GREY = 3, 1  # channels of an image
NAMED = 3  # differing keys that a message names
COUNTER = ".num_batches_tracked"  # of a batch norm; files from before torch 0.4.1 lack it
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads that torchvision removes
UNCOUNTED = "with their class head if prep finds as many classes as it has, else with a new one"


@dataclass
class Fit:
    """The fit of weights to a network: tensors to load, tensors that stay random, differences."""

    loaded: dict[str, Tensor] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)  # names of the classifier's tensors
    differing: list[str] = field(default_factory=list)  # descriptions of the differences
    others: list[str] = field(default_factory=list)  # kernels for images of other channels


def begin(
    network: nn.Module, model: Model, classes: int, channels: int = RGB, counted: bool = True
) -> list[str]:
    """Load the initial weights of a new network, and freeze parameters.

    Args:
        network: a newly built network.
        model: the settings of the network.
        classes: number of classes of its classifier.
        channels: channels of its images.
        counted: whether this is the number of classes of the data; False before prep has run.

    Returns:
        Lines for the log.

    Raises:
        UserError: the weights cannot be read or belong to another network, a value is not finite,
            or a parameter with random values would be frozen.
    """
    lines: list[str] = []
    fresh: list[str] = []
    if model.pretrained is not None:
        lines, fresh = _load(network, model, classes, channels, counted)
    _refuse_nonfinite(network, model)
    lines += freezing.freeze(network, model.freeze)
    for name in fresh if counted else ():
        if not network.get_parameter(name).requires_grad:
            raise UserError(f"model.freeze keeps {name}, whose values are random; match less")
    return lines


def _refuse_nonfinite(network: nn.Module, model: Model) -> None:
    """Refuse parameters that are not finite before the first step; masks may hold -inf."""
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(
                f"{name} of {_named(model)} holds values that are not finite before the first "
                "step; have the network begin with finite ones"
            )


def _load(
    network: nn.Module, model: Model, classes: int, channels: int, counted: bool
) -> tuple[list[str], list[str]]:
    """Load `model.pretrained`; return lines for the log, and the random tensors of the classifier.

    A classifier for another number of classes keeps its random values. If the file has a bias that
    fusing gave to a convolution, and the network's convolution has none, the convolution gets one.
    """
    path = Path(str(model.pretrained))
    held = weights.named_as(weights.read(path, model.pretrained_sha256), network.state_dict())
    head = architectures.head(model, classes, channels)
    lines: list[str] = []
    others: list[str] = []
    own = isinstance(model, Timm) and model.own_branches
    if _has_branches(held) and isinstance(model, Timm) and model.name.startswith("repvgg"):
        held, others = _folded(path, model, held, head, channels)
        origin = "are those of the network" if own else "were folded into 3x3 convolutions"
        lines.append(f"start: the branches of these RepVGG weights {origin}")
    elif own:
        raise UserError(
            f"{KEY}={path} has no branches for those of the network, model.own_branches=true; "
            "leave model.own_branches out, or give weights of a RepVGG with branches"
        )
    found = fit(network, held, head)
    if found.differing and isinstance(model, Timm):
        found = min(found, _as_timm(network, held, head), key=lambda each: len(each.differing))
    if found.differing:
        raise UserError(_refusal(path, model, network, held, found.differing))
    _add_biases(network, found.loaded)
    network.load_state_dict(found.loaded, strict=False)
    lines += [f"start: weights of {path}, {_head(found, held, classes) if counted else UNCOUNTED}"]
    if names := " and ".join(others or found.others):
        lines.append(f"start: the kernels of {names} {CONVERTED[channels]}")
    if idle := _idle_norms(network):
        lines.append(
            f"note: {idle} batch norms of these weights have no statistics, because branches had "
            "them before fusing; they gather them again"
        )
    return lines, found.fresh


def fill_branches(network: nn.Module, model: Model, channels: int = RGB) -> None:
    """Load the published weights of the branches into a RepVGG that began with those weights.

    Args:
        network: a network to which `begin` gave its weights, and then its own branches were added.
        model: the settings of the network, with `own_branches`.
        channels: channels of its images.
    """
    assert isinstance(model, Timm)
    theirs = repvgg.branched(model.name, channels)
    held = weights.named_as(weights.read(Path(str(model.pretrained)), None), theirs.state_dict())
    repvgg.fill(network, held | fit(theirs, held, set()).loaded)


def _folded(
    path: Path, model: Timm, held: dict[str, Tensor], head: set[str], channels: int
) -> tuple[dict[str, Tensor], list[str]]:
    """Convert weights of a RepVGG with branches to the plain network, or refuse them.

    Returns:
        The weights, and the names of kernels for images of other channels.
    """
    network = repvgg.branched(model.name, channels)
    held = weights.named_as(held, network.state_dict())
    found = fit(network, held, head)
    if found.differing:
        raise UserError(_refusal(path, model, network, held, found.differing))
    return repvgg.straightened(held | found.loaded, network), found.others


def _has_branches(held: dict[str, Tensor]) -> bool:
    return any(".conv_kxk." in name for name in held)


def fit(network: nn.Module, held: dict[str, Tensor], head: set[str]) -> Fit:
    """Compare weights with those of a network, by name and shape.

    Args:
        network: a newly built network.
        held: the weights.
        head: names of the tensors of its classifier.
    """
    own = network.state_dict()
    held = weights.named_as(held, own)
    found = Fit()
    for name, tensor in own.items():
        other = held.get(name)
        if other is not None and other.shape == tensor.shape:
            found.loaded[name] = other
        elif name in head and (other is None or other.shape[1:] == tensor.shape[1:]):
            found.fresh.append(name)
        elif other is not None and _channels(network, name, other) in (GREY, RGB):
            found.loaded[name] = _converted(other)
            found.others.append(name)
        elif other is not None:
            found.differing.append(f"{name} is {_size(other)} there and {_size(tensor)} here")
        elif not name.endswith(COUNTER):
            found.differing.append(f"{name} is not there")
    for name in held.keys() - own.keys():
        if _bias_of(network, name):
            found.loaded[name] = held[name]
    extra = [n for n in held if n not in own and n not in found.loaded]
    found.differing += [f"{n} is not here" for n in extra if not n.startswith(AUXILIARY)]
    return found


CONVERTED = {
    RGB: "are for grey images; each of three channels gets a third of them, so the scores of grey "
    "images stay the same",
    GREY: "are for RGB; the one channel gets the sum of the three, so the scores of grey images "
    "stay the same",
}  # by the channels of the network


def _converted(kernel: Tensor) -> Tensor:
    """Return a kernel for grey images as one for RGB, or the other way round, as timm does."""
    if kernel.shape[1] == GREY:
        return kernel.repeat(1, RGB, 1, 1) / RGB
    return kernel.sum(1, keepdim=True)


def _channels(network: nn.Module, name: str, kernel: Tensor) -> int | None:
    """Return how many channels of images a kernel takes, if it is for them and else fits."""
    conv = network.get_submodule(name.rpartition(".")[0])
    if not isinstance(conv, nn.Conv2d) or conv.in_channels not in (GREY, RGB) or kernel.ndim != 4:
        return None
    own = conv.weight.shape
    return kernel.shape[1] if kernel.shape == (own[0], kernel.shape[1], *own[2:]) else None


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one value"


def _bias_of(network: nn.Module, name: str) -> nn.Conv2d | None:
    """Return the convolution without bias to which a bias of this name would belong."""
    path, _, last = name.rpartition(".")
    try:
        conv = network.get_submodule(path)
    except AttributeError:
        return None
    return conv if last == "bias" and isinstance(conv, nn.Conv2d) and conv.bias is None else None


def _add_biases(network: nn.Module, loaded: dict[str, Tensor]) -> None:
    for name in loaded:
        if conv := _bias_of(network, name):
            conv.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
            conv.bias_was_added = True  # type: ignore[assignment]  # noted by dyrep.structure


def _as_timm(network: nn.Module, held: dict[str, Tensor], head: set[str]) -> Fit:
    """Fit weights after timm's filter, which converts older names and other image sizes."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        converted = convert(dict(held), network) if convert else held
    except Exception:  # the filter fails on a file of another network
        converted = held
    return fit(network, converted, head)


def _head(found: Fit, held: dict[str, Tensor], classes: int) -> str:
    if not found.fresh:
        return f"with their class head, of {classes:,} classes"
    name = found.fresh[0]
    there = f"{len(held[name]):,} classes there" if name in held else "there is none there"
    return f"but the class head ({', '.join(found.fresh)}) is new: {there}, {classes:,} here"


def _idle_norms(network: nn.Module) -> int:
    """Return the number of batch norms without effect: those of static blocks after fusing."""
    norms = [norm for norm in network.modules() if isinstance(norm, _BatchNorm)]
    spreads = [(norm.running_var, 1 - norm.eps) for norm in norms]
    return sum(v is not None and torch.equal(v, torch.full_like(v, s)) for v, s in spreads)


def _refusal(
    path: Path, model: Model, network: nn.Module, held: dict[str, Tensor], differing: list[str]
) -> str:
    more = len(differing) - NAMED
    named = "; ".join(differing[:NAMED]) + (f"; and {more} more" if more > 0 else "")
    cure = next(_cures(path, model, network, held))
    return f"{KEY}={path} does not fit {_named(model)}: {named}. {cure}"


def _named(model: Model) -> str:
    if isinstance(model, Custom):
        return f"model.target={model.target}"
    return f"model.name={model.name}"


def _cures(path: Path, model: Model, network: nn.Module, held: dict[str, Tensor]) -> Iterator[str]:
    """Yield possible cures, the most likely first."""
    if any(".branches." in name for name in held):
        yield "They have branches: give the name of the run, which stands for its fused weights"
    if _has_branches(held):
        yield "They are of a RepVGG with branches; choose its name with model=timm model.name="
    if isinstance(model, Torchvision | MobileNetV1):
        stem = not model.small_stem
        other = model.model_copy(update={"small_stem": stem})
        if (stem is False or has_small_stem(model.model_dump())) and _fits(other, held):
            yield f"They fit with model.small_stem={str(stem).lower()}"
    kernels = [(n, held[n]) for n, p in network.named_parameters() if n in held and p.ndim == 4]
    counts = (_channels(network, name, kernel) for name, kernel in kernels)
    if count := next((count for count in counts if count not in (None, GREY, RGB)), None):
        yield f"They are for images of {count} channels; give weights for images of {GREY} or {RGB}"
    run = path.parent.parent
    if rundir.there(run / "run.json"):
        theirs = rundir.read_yaml(run / "config.yaml")["model"]
        ours = model.model_dump(mode="json", exclude=set(ASIDE))
        differing = [k for k in ours if k in theirs and theirs[k] != ours[k]]
        if differing:
            yield f"That run has {', '.join(f'model.{k}={written(theirs[k])}' for k in differing)}"
    yield "Choose the model= and model.name= of these weights"


def _fits(model: Model, held: dict[str, Tensor]) -> bool:
    with torch.random.fork_rng(devices=[]):
        network = architectures.build(model, 1)
    return not fit(network, held, architectures.head(model, 1)).differing
