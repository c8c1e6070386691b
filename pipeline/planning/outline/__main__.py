"""Build a network on the meta device and answer questions about it, in a process with torch.

Options: `--outline` (size and convolutions that can grow), `--start` (initial weights and
branches), `--weights` (file of published weights), `--optimizer` (tries an optimizer) and
`--images` (tries the user's code for images) read a request from stdin; `--names` lists the
networks of libraries. Each option prints its answer as a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from dyrep.block import fitting, outer_blocks
from dyrep.cost import cost
from dyrep.eligible import convs, unfit_convs
from dyrep.geometry import Geometry
from pipeline.config import sections
from pipeline.config.base import Values
from pipeline.config.data import Custom as Settings
from pipeline.config.model import Model, Structured, added
from pipeline.custom import code
from pipeline.custom.call import raised
from pipeline.data.sources.custom import Custom
from pipeline.display.errors import UserError, gist
from pipeline.networks import (
    architectures,
    freezing,
    library,
    optimizers,
    pretrained,
    shape,
    structures,
    trial,
)
from pipeline.networks.architectures import DROPS
from pipeline.planning.outline import CALLS, Images, Outline, Request

CHANNELS = {1: "1 channel", 3: "3 channels"}


def outline(request: Request) -> Outline:
    """Return the outline of a network; run it on the CPU if it cannot run on the meta device.

    Raises:
        UserError: the network cannot be built or run.
    """
    network = _built(request)
    try:
        _try(network, request, next(network.parameters()).device.type)
    except Exception as error:
        if not _needs_values(error):
            raise UserError(_refusal(network, request, error)) from None
        network = _build(request)
        try:
            _try(network, request, "cpu")
        except Exception as second:
            raise UserError(_refusal(network, request, second)) from None
    if request.model["family"] == "custom":
        shape.check(network, _built(request), request.model["target"])
    device = next(network.parameters()).device
    _refuse_idle(request, device)
    spent = cost(network, _images_of(request, 1, request.sides[0], device))
    return Outline(
        parameters=spent.parameters, flops=spent.flops, **_growth(network, request.branches)
    )


def _images_of(request: Request, count: int, side: int, device: torch.device | str) -> torch.Tensor:
    return torch.zeros(count, request.channels, side, side, device=device)


def _growth(network: nn.Module, branches: Sequence[str]) -> dict[str, Any]:
    """Return which convolutions can take branches, which cannot and why, and if norms follow."""
    left = dict(unfit_convs(network))
    for path, conv in convs(network):
        if path not in left and not fitting(conv, branches):
            left[path] = "it can take none of these branches"
    growable = [conv for path, conv in convs(network) if path not in left]
    depthwise = sum(Geometry.of(conv).depthwise for conv in growable)
    reasons = dict(Counter(left.values()))
    found = {"growable": len(growable), "left": reasons, "depthwise": depthwise}
    return {**found, "norms": bool(freezing.following(network))}


def start(request: Values) -> dict[str, object]:
    """Return the outline of a network with its initial weights and branches.

    Raises:
        UserError: they do not fit the network.
    """
    known = sections({"model": request["model"], "method": request["method"]})
    classes, channels = request["classes"], request["channels"]
    network = architectures.build(known.model, classes, channels)
    lines = pretrained.begin(network, known.model, classes, channels, request["counted"])
    if request["head_lr"] is not None:
        optimizers.check_head(network, architectures.head(known.model, classes, channels))
    found = _growth(network, added(known.method))
    if isinstance(known.method, Structured):
        structures.apply(network, known.method)
        lines.append(structures.log_line(network, known.method))
        found = {"growable": len(outer_blocks(network)), "left": {}}
    return {**found, "start": lines}


def _built(request: Request) -> nn.Module:
    """Return a network on the meta device, or on the CPU if building it needs real values."""
    try:
        with torch.device("meta"):
            return _build(request)
    except (NotImplementedError, RuntimeError):  # e.g. RegNets of torchvision
        pass
    except UserError:
        if request.model["family"] != "custom":
            raise
    return _build(request)


def _build(request: Request) -> nn.Module:
    model = TypeAdapter(Model).validate_python(request.model)
    return architectures.build(model, request.classes, request.channels)


def _try(network: nn.Module, request: Request, device: str) -> None:
    """Run a network in train and eval mode, at every image size of the request."""
    learns = request.model["family"] == "custom" or request.processes > 1
    for training, batch in ((False, 1), (True, min(request.batch, 2))):
        network.train(training)
        for side in dict.fromkeys(request.sides):
            images = _images_of(request, batch, side, device)
            with torch.set_grad_enabled(training and learns):
                scores = network(images)
            if not isinstance(scores, torch.Tensor):
                raise TypeError(f"it returns a {type(scores).__name__}, no tensor of scores")
            expected = (batch, request.classes if request.counted else scores.shape[-1])
            if scores.shape != expected:
                raise ValueError(
                    f"it returns {tuple(scores.shape)} for {batch} images and {request.classes} "
                    "classes, not one score for each class"
                )
            if training and learns:
                shape.learn(scores)
            if training and request.processes > 1:
                shape.reaches_all(network, request.model.get("freeze") or [])


def _refuse_idle(request: Request, device: torch.device) -> None:
    """Check that `drop` and `drop_path` change the random operations of a training step.

    Raises:
        UserError: the network accepts the setting and ignores it.
    """
    for key in DROPS:
        if (share := request.model.get(key)) is None:
            continue
        another = replace(request, model={**request.model, key: share / 2})
        if _drawn(request, device) == _drawn(another, device):
            raise UserError(
                f"model.{key} changes nothing in {request.model['name']}; leave it out, or use "
                "another model.name"
            )


def _drawn(request: Request, device: torch.device) -> list[tuple[Any, ...]]:
    """Return the random operations of a training step, with their arguments."""
    with torch.device(device):
        network = _build(request).train()
    with shape.Drawing() as drawing:
        network(_images_of(request, 2, request.sides[0], device))
    return drawing.seen


def _needs_values(error: Exception) -> bool:
    """Whether a network failed only because the meta device has no values."""
    return isinstance(error, NotImplementedError) or "meta" in str(error).lower()


def _refusal(network: nn.Module, request: Request, error: Exception) -> str:
    """Return why a network cannot be trained on these images, and the cure."""
    name, size = request.model.get("target", request.model["name"]), request.sides[0]
    if "Expected more than 1 value per channel" in str(error):
        return (
            f"{name} reduces an image to one value, and a batch norm in training needs two; use at "
            "least two images per process in train.batch_size, or a larger data.image_size"
        )
    images = " and ".join(str(side) for side in dict.fromkeys(request.sides))
    usual = getattr(network, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]
    cure = "use another data.image_size or model.name"
    other = 4 - request.channels  # 1 instead of 3, or 3 instead of 1
    if shape.runs(network, other, size):
        into = " give its function a parameter in_channels, which gets that number, or"
        return (
            f"{name} is for images of {CHANNELS[other]}, and data.channels={request.channels};"
            f"{into if 'target' in request.model else ''} set data.channels={other}"
        )
    if "target" in request.model:
        text = f"model.target={name} returns a network that cannot be trained on images of"
        return f"{text} {images} pixels: it {raised(error)}"
    if usual != size and shape.runs(network, request.channels, usual):
        cure = f"data.image_size={usual} works"
    return f"{name} cannot be trained on images of {images} pixels ({gist(error)}); {cure}"


def names() -> dict[str, list[str]]:
    """Return the classifiers of each library."""
    import timm
    from torchvision import models as torchvision_models

    return {
        "timm": sorted(timm.list_models()),
        "torchvision": sorted(torchvision_models.list_models(module=torchvision_models)),
    }


def _images(request: Values) -> Images:
    data = sections(request).data
    assert isinstance(data, Settings)
    training, classes, side = Custom(data).sizes()
    return Images(training=training, classes=classes, side=side)


def _theirs(request: Values) -> str | None:
    """Return the setting that names the user's code, if the request calls any; else None."""
    settings = ((name, request.get(name)) for name in code.SECTIONS)
    named = ((n, its["target"]) for n, its in settings if its and "target" in its)
    return next((f"{name}.target={target}" for name, target in named), None)


def _reply(request: Values) -> dict[str, object]:
    """Return the answer to a request, or the reason why it is refused."""
    try:
        return _answer(request)
    except UserError as error:
        return {"refused": str(error)}
    except BaseException as error:  # the user's code may raise anything
        if not (theirs := _theirs(request)):
            raise
        return {"refused": f"{theirs} {raised(error)}"}


def _answer(request: Values) -> dict[str, object]:
    if code_dir := request.get("code_dir"):
        code.on_path(Path(code_dir))
    os.chdir("/")  # as a stage does not run in the directory of the launch either
    if sys.argv[1:] == ["--images"]:
        return vars(_images({"data": request["data"]}))
    if sys.argv[1:] == ["--weights"]:
        return {"path": str(library.cached(**request))}
    if sys.argv[1:] == ["--start"]:
        return start(request)
    if sys.argv[1:] == ["--optimizer"]:
        config = sections(request)
        try:
            trial.attempt(config.train, config.method)
        except UserError as error:
            lacking = optimizers.needs_gpu(config.train.optimizer) and not torch.cuda.is_available()
            return {"refused": str(error), "needs_gpu": lacking}
        return {}
    with torch.no_grad():
        return vars(outline(Request(**request)))


def main() -> None:
    """Print the answer as one line of JSON; all other output goes to stderr.

    A line announces each call of the user's code. It stays the last line if that code ends the
    process.
    """
    warnings.simplefilter("ignore")
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = {} if sys.argv[1:] == ["--names"] else json.load(sys.stdin)
    if theirs := _theirs(request):
        print(json.dumps({CALLS: theirs}), file=stdout, flush=True)
    answer = _reply(request) if request else names()
    print(json.dumps(answer), file=stdout, flush=True)
    os._exit(0)  # threads of the user's code may still run, and would delay a normal exit


if __name__ == "__main__":
    main()
