"""A network of your own, as `model=custom model.target=network:small_resnet` calls it."""

from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv(inputs, outputs, 3, stride)
        self.second = conv(outputs, outputs, 3, 1)
        self.shortcut = conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, outputs, H / stride, W / stride) of features (N, inputs, H, W)."""
        return (self.second(self.first(x).relu()) + self.shortcut(x)).relu()


def conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """Return a convolution and its batch norm."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def small_resnet(num_classes: int, in_channels: int = 3, width: int = 16) -> nn.Module:
    """Return a network from images (N, in_channels, H, W) to scores (N, num_classes)."""
    return nn.Sequential(
        conv(in_channels, width, 3, 1),
        nn.ReLU(),
        Block(width, width, 1),
        Block(width, 2 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, num_classes),
    )
