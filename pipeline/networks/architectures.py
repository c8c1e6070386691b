"""Build the plain network of a configuration, without extra branches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import nn

from pipeline.config.model import BLOCKS, Custom, MobileNetV1, Model, Timm, Vgg, widened
from pipeline.custom.call import call
from pipeline.display.errors import UserError, nearest
from pipeline.networks import repvgg

DROPS = {"drop": ("dropout", "drop_rate"), "drop_path": ("stochastic_depth_prob", "drop_path_rate")}
"""Names of our settings in constructors of torchvision and timm."""
RGB = 3  # channels of an image, unless data.channels says 1
CHANNELS = ("in_channels", "in_chans")  # how targets name the number of channels
AUXILIARY = ("googlenet", "inception_v3")  # torchvision's networks with more than one output


def build(model: Model, classes: int, channels: int = RGB) -> nn.Module:
    """Return the plain network of `model=` for images of 3 or 1 channels, freshly initialised.

    Raises:
        UserError: torchvision or timm has no classifier of that name (the message names the
            nearest), the classifier does not support `drop` or `drop_path`, or the user's code
            returns no network.
    """
    if isinstance(model, Custom):
        return from_target(model, classes, channels)
    if isinstance(model, Vgg):
        return vgg(model.widths, classes, model.hidden, model.bias, channels)
    if isinstance(model, MobileNetV1):
        return mobilenet_v1(model.width, model.small_stem, classes, channels)
    drops = {key: value for key in DROPS if (value := getattr(model, key)) is not None}
    if isinstance(model, Timm):
        return from_timm(model.name, classes, channels, **drops)
    return from_torchvision(model.name, model.small_stem, classes, channels, **drops)


def head(model: Model, classes: int, channels: int = RGB) -> set[str]:
    """Return the parameters of the classifier, whose shape depends on the number of classes."""
    one, other = (_shapes(model, count, channels) for count in (classes, classes + 1))
    return {name for name, shape in one.items() if other.get(name) != shape}


def _shapes(model: Model, classes: int, channels: int) -> dict[str, torch.Size]:
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                network = build(model, classes, channels)
        except (NotImplementedError, RuntimeError):  # its constructor needs values
            network = build(model, classes, channels)
    return {name: parameter.shape for name, parameter in network.named_parameters()}


def vgg(
    widths: list[list[int]],
    classes: int,
    hidden: int | None = None,
    bias: bool = True,
    channels: int = RGB,
) -> nn.Module:
    """Return conv-BN-ReLU layers, a 2x2 max pool after each stage, and a linear classifier.

    Args:
        widths: channels of each convolution, by stage.
        classes: number of outputs.
        hidden: outputs of a linear layer and ReLU before the classifier; None: no such layer.
        bias: whether convolutions have a bias, as in torchvision's VGG. A fused network then has
            the same keys as the plain one.
        channels: channels of an image.
    """
    layers: list[nn.Module] = []
    inputs = channels
    for stage in widths:
        for width in stage:
            layers += [
                nn.Conv2d(inputs, width, 3, padding=1, bias=bias),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return _classifier(layers, inputs, classes, hidden)


def mobilenet_v1(width: float, small_stem: bool, classes: int, channels: int = RGB) -> nn.Module:
    """Return MobileNet (Howard et al., 2017): a 3x3 conv, then 13 depthwise-separable blocks.

    Every channel count is multiplied by `width`; the small stem has stride 1 instead of 2. timm's
    `mobilenetv1_100` has neither setting, and its norms contain the activation, so they cannot be
    folded.
    """
    inputs = widened(32, width)
    layers = _conv_norm_relu(channels, inputs, stride=1 if small_stem else 2)
    for count, stride in BLOCKS:
        outputs = widened(count, width)
        layers += _conv_norm_relu(inputs, inputs, stride=stride, groups=inputs)
        layers += _conv_norm_relu(inputs, outputs, kernel=1)
        inputs = outputs
    return _classifier(layers, inputs, classes)


def _conv_norm_relu(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def from_torchvision(
    name: str, small_stem: bool, classes: int, channels: int = RGB, **drops: float
) -> nn.Module:
    """Return a torchvision classifier; a ResNet's small stem suits images of 32 pixels and below.

    All classifiers of torchvision are for RGB. For grey images, the first convolution keeps only
    the kernels of the first channel.

    Raises:
        UserError: torchvision has no classifier of that name, or it does not support a setting.
    """
    from torchvision import models  # the import takes four seconds

    check_name(name, models.list_models(module=models), "torchvision")
    one_output = {"aux_logits": False, "init_weights": True} if name in AUXILIARY else {}
    make = partial(models.get_model, name, weights=None, num_classes=classes, **one_output)
    network = _dropping(make, f"{name} of torchvision", drops)
    if small_stem:
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    if channels != RGB:
        _narrow(network, channels)
    return network


def _narrow(network: nn.Module, channels: int) -> None:
    """Have the first convolution, which takes RGB, take fewer channels."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.detach()[:, :channels].clone())
    first.in_channels = channels


def from_timm(name: str, classes: int, channels: int = RGB, **drops: float) -> nn.Module:
    """Return a timm classifier with fresh weights; nothing is downloaded.

    Raises:
        UserError: timm has no classifier of that name (`hf-hub:` addresses are refused), or it
            does not support a setting.
    """
    import timm  # takes four seconds

    check_name(name, timm.list_models(), "timm")
    make = partial(
        timm.create_model, name, pretrained=False, num_classes=classes, **of_timm(channels)
    )
    network = _dropping(make, f"{name} of timm", drops)
    repvgg.straighten(network)
    return network


def of_timm(channels: int) -> dict[str, int]:
    """Return the arguments of `timm.create_model` for images of so many channels."""
    return {} if channels == RGB else {"in_chans": channels}  # a few networks do not take it


def _dropping(make: Callable[..., nn.Module], name: str, drops: dict[str, float]) -> nn.Module:
    """Call a constructor with `drop` and `drop_path`, if set, by the names that it uses.

    Raises:
        UserError: the constructor does not support one of them.
    """
    errors = []
    for names in product(*(DROPS[key] for key in drops)):
        try:
            return make(**dict(zip(names, drops.values(), strict=True)))
        except TypeError as error:
            errors.append(error)
    messages = " ".join(map(str, errors))
    for key in drops:
        if all(f"'{word}'" in messages for word in DROPS[key]):
            raise UserError(
                f"{name} does not support model.{key}; leave it out, or use another model.name"
            )
    raise errors[0]


def from_target(model: Custom, classes: int, channels: int = RGB) -> nn.Module:
    """Return the network of the user's function or class; its code must be importable already.

    The target gets the number of channels if it names a parameter `in_channels` or `in_chans`.

    Raises:
        UserError: the target cannot be called, or returns no network with parameters.
    """
    named = dict.fromkeys(CHANNELS, channels)
    network = call("model.target", model, named, num_classes=classes)
    text = f"model.target={model.target} returned"
    if isinstance(network, type) or not isinstance(network, nn.Module):
        raise UserError(f"{text} {type(network).__name__}; it must return a torch.nn.Module")
    parameters = list(network.parameters())
    if any(isinstance(p, nn.UninitializedParameter) for p in parameters):
        raise UserError(f"{text} a network with lazy modules; give them their sizes")
    if not parameters:
        raise UserError(f"{text} a network without parameters; there is nothing to train")
    return network


def check_name(name: str, valid: list[str], library: str) -> None:
    """Check that a library has a classifier of this name.

    Raises:
        UserError: the library has none; the message names the nearest.
    """
    if name not in valid:
        base, _, tag = name.partition(".")
        cure = nearest(name, valid, "model.name=")
        if base in valid:  # with the name of its weights, as timm writes it
            cure = f"write model.name={base} model.pretrained={tag}"
        raise UserError(f"model.name={name} is not a classifier of {library}; {cure}")


def _classifier(
    layers: list[nn.Module], features: int, classes: int, hidden: int | None = None
) -> nn.Module:
    """Return a network of layers, global pooling and a linear classifier, freshly initialised.

    `hidden`: outputs of a linear layer and ReLU between pooling and classifier.
    """
    network = nn.Sequential()
    network.add_module("features", nn.Sequential(*layers))
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    if hidden:
        network.add_module("hidden", nn.Linear(features, hidden))
        network.add_module("hidden_relu", nn.ReLU())
        features = hidden
    network.add_module("classifier", nn.Linear(features, classes))
    _initialise(network)
    return network


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
