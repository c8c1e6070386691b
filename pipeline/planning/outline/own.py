"""Compute the outline of this project's networks, which `architectures` builds, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pipeline.config.base import Values
from pipeline.config.model import BLOCKS, widened
from pipeline.display.errors import UserError

if TYPE_CHECKING:
    from pipeline.planning.outline import Outline, Request

LARGEST = 10**11  # parameters: 400 GB of weights


@dataclass(frozen=True)
class Conv:
    """A convolution followed by a batch norm; its output has `side` x `side` pixels."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    groups: int
    side: int
    bias: bool

    @property
    def weights(self) -> int:
        """Number of weights, without the bias."""
        return self.kernel**2 * self.outputs * self.inputs // self.groups

    def takes(self, branches: list[str]) -> bool:
        """Whether it can take one of the branches, by the same rule as `dyrep.branches.unfit`."""
        alike = self.inputs == self.outputs and self.stride == 1
        return self.kernel > 1 and (alike or any(name != "identity" for name in branches))


def outline(request: Request) -> Outline:
    """Return the outline of a network.

    Raises:
        UserError: the images are too small for its poolings, or for a batch norm in training.
    """
    from pipeline.planning.outline import Outline

    name = request.model["name"]
    for side in request.sides:
        smallest = min(conv.side for conv in convs(request.model, side, request.channels))
        if smallest < 1:
            raise UserError(f"images of {side} pixels vanish in model={name}; use larger ones")
        if smallest == request.batch == 1:
            raise UserError(
                f"model={name} reduces an image of {side} pixels to one value, and a batch norm "
                "in training needs two; use at least two images per process in train.batch_size"
            )
    layers = list(convs(request.model, request.sides[0], request.channels))
    head = [layers[-1].outputs, request.model.get("hidden"), request.classes]
    linear = list(pairwise(width for width in head if width))
    parameters = sum(c.weights + c.outputs * (3 if c.bias else 2) for c in layers)
    parameters += sum((inputs + 1) * outputs for inputs, outputs in linear)
    if parameters > LARGEST:
        raise UserError(f"model={name} would have {parameters:.1e} parameters; make it narrower")
    flops = sum(2 * c.weights * c.side**2 for c in layers)
    flops += sum(2 * inputs * outputs for inputs, outputs in linear)
    growable = [c for c in layers if c.takes(request.branches)]
    large = sum(c.kernel > 1 for c in layers)
    unfit = large - len(growable)
    return Outline(
        parameters=parameters,
        flops=flops,
        growable=len(growable),
        left={"it can take none of these branches": unfit} if unfit else {},
        depthwise=sum(c.groups > 1 for c in growable),
    )


def convs(model: Values, side: int, channels: int) -> Iterator[Conv]:
    """Yield the convolutions of a network for square images of `side` pixels."""
    if model["family"] == "vgg":
        return _vgg(channels, model["widths"], side, bool(model.get("bias", True)))
    return _mobilenet(channels, model["width"], bool(model["small_stem"]), side)


def _vgg(inputs: int, widths: list[list[int]], side: int, bias: bool) -> Iterator[Conv]:
    for stage in widths:
        for width in stage:
            yield Conv(inputs, width, 3, 1, 1, side, bias)
            inputs = width
        side //= 2
    if side < 1:
        yield Conv(inputs, inputs, 1, 1, 1, 0, bias=False)  # side 0: the caller refuses such images


def _mobilenet(channels: int, width: float, small_stem: bool, side: int) -> Iterator[Conv]:
    inputs, stride = widened(32, width), 1 if small_stem else 2
    side = (side - 1) // stride + 1
    yield Conv(channels, inputs, 3, stride, 1, side, bias=False)
    for count, stride in BLOCKS:
        side, outputs = (side - 1) // stride + 1, widened(count, width)
        yield Conv(inputs, inputs, 3, stride, inputs, side, bias=False)
        yield Conv(inputs, outputs, 1, 1, 1, side, bias=False)
        inputs = outputs
