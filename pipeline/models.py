"""Networks by their configuration; always the plain architecture, without extra branches."""

from __future__ import annotations

from torch import nn

from pipeline.config import Torchvision, Vgg


def build(model: Vgg | Torchvision, classes: int) -> nn.Module:
    """Return the plain network of `model=` for RGB images, freshly initialised."""
    if isinstance(model, Vgg):
        return vgg(model.widths, classes)
    return resnet(model.name, model.small_stem, classes)


def vgg(widths: list[list[int]], classes: int) -> nn.Module:
    """Return conv-BN-ReLU layers, a 2x2 max pool after each stage, and a linear classifier.

    Convolutions have biases, as torchvision's VGG does: a fused network then has the same keys.
    """
    layers: list[nn.Module] = []
    inputs = 3
    for stage in widths:
        for width in stage:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    network = nn.Sequential()
    network.add_module("features", nn.Sequential(*layers))
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    network.add_module("classifier", nn.Linear(inputs, classes))
    _initialise(network)
    return network


def resnet(name: str, small_stem: bool, classes: int) -> nn.Module:
    """Return a torchvision ResNet; the small stem suits images of 32 pixels and below."""
    import torchvision  # takes four seconds: only where it is asked for

    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
    if small_stem:
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    return network


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
