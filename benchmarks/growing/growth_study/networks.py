"""Build the two networks, which are small enough to train in minutes on one core."""

from collections.abc import Callable

from torch import nn
from torchvision.models.resnet import BasicBlock

WIDTHS = (16, 32, 64)
CLASSES = 10


def deep() -> nn.Module:
    """Return 19 3x3 convs with batch norms and without skips, on 14, 7 and 4 pixels of width."""
    layers: list[nn.Module] = []
    inputs = 1
    for width, count in zip(WIDTHS, (6, 7, 6), strict=True):
        for index in range(count):
            layers += _layer(inputs, width, stride=2 if index == 0 else 1)
            inputs = width
    return _classifier(layers, inputs)


def resnet() -> nn.Module:
    """Return a stem and two basic blocks at each of three widths: 13 3x3 convs."""
    layers = _layer(1, WIDTHS[0], stride=2)
    inputs = WIDTHS[0]
    for width in WIDTHS:
        stride = 1 if width == inputs else 2
        layers += [BasicBlock(inputs, width, stride, _shortcut(inputs, width, stride))]
        layers += [BasicBlock(width, width)]
        inputs = width
    return _classifier(layers, inputs)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"deep": deep, "resnet": resnet}


def _layer(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if inputs == outputs:
        return None
    conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _classifier(layers: list[nn.Module], features: int) -> nn.Module:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, CLASSES)]
    return nn.Sequential(*layers, *head)
