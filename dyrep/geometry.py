"""Describe the geometry of a convolution: kernel, stride, padding, dilation, groups.

Every branch of a block covers a window inside the kernel of the conv beside it. The geometry turns
that window into padding or cropping of the input, for any padding and any padding mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


@dataclass(frozen=True)
class Geometry:
    """The hyperparameters of a conv; `padding` is (begin, end) for height and for width."""

    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int
    padding_mode: PaddingMode

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Geometry:
        """Return the geometry of a conv, in whatever form its padding is given."""
        kernel, dilation = _pair(conv.kernel_size), _pair(conv.dilation)
        if conv.padding == "same":
            totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
            height, width = ((total // 2, total - total // 2) for total in totals)
        else:
            sizes = (0, 0) if conv.padding == "valid" else _pair(conv.padding)
            height, width = ((size, size) for size in sizes)
        return cls(
            conv.in_channels,
            conv.out_channels,
            kernel,
            _pair(conv.stride),
            (height, width),
            dilation,
            conv.groups,
            conv.padding_mode,
        )

    @property
    def depthwise(self) -> bool:
        """Whether each channel has a kernel of its own."""
        return self.in_channels == self.out_channels == self.groups

    @property
    def centre(self) -> Pair:
        """The tap that a 1x1 window covers; for an even kernel, the one before the middle."""
        height, width = self.kernel_size
        return (height - 1) // 2, (width - 1) // 2

    def margins(self, size: Pair, offset: Pair) -> tuple[Pair, Pair]:
        """Return the (begin, end) padding that a window of the kernel needs; negative ones crop."""
        height, width = (
            (begin - o * d, end - (k - o - s) * d)
            for (begin, end), o, d, k, s in zip(
                self.padding, offset, self.dilation, self.kernel_size, size, strict=True
            )
        )
        return height, width

    def conv(self, size: Pair, offset: Pair) -> nn.Conv2d:
        """Return a conv without bias for a window whose input comes from `window`."""
        height, width = self.margins(size, offset)
        inside = self._conv_can_pad(height, width)
        return nn.Conv2d(
            self.in_channels,
            self.out_channels,
            size,
            self.stride,
            (height[0], width[0]) if inside else 0,
            self.dilation,
            self.groups,
            bias=False,
        )

    def _conv_can_pad(self, height: Pair, width: Pair) -> bool:
        """Whether a conv can do the padding of these margins by its own zero padding."""
        symmetric = height[0] == height[1] >= 0 and width[0] == width[1] >= 0
        return symmetric and self.padding_mode == "zeros"

    def window(self, x: Tensor, size: Pair, offset: Pair) -> Tensor:
        """Return the input for a window: padded or cropped, unless the conv itself can pad it."""
        height, width = self.margins(size, offset)
        if self._conv_can_pad(height, width):
            return x
        return self.pad(x, height, width)

    def window_copy(self, size: Pair, offset: Pair, inputs: Pair) -> int:
        """Return the number of positions of the copy that `window` makes; 0 if it makes none."""
        height, width = self.margins(size, offset)
        if self._conv_can_pad(height, width):
            return 0
        return (inputs[0] + sum(height)) * (inputs[1] + sum(width))

    def average(self, x: Tensor) -> Tensor:
        """Average over the kernel; padded values count, too."""
        height, width = self.padding
        if self._pooling_can_pad():
            return F.avg_pool2d(x, self.kernel_size, self.stride, (height[0], width[0]))
        return F.avg_pool2d(self.pad(x, height, width), self.kernel_size, self.stride)

    def average_copy(self, inputs: Pair) -> int:
        """Return the number of positions of the copy that `average` makes; 0 if it makes none."""
        height, width = self.padding
        if self._pooling_can_pad():
            return 0
        return (inputs[0] + sum(height)) * (inputs[1] + sum(width))

    def _pooling_can_pad(self) -> bool:
        """Whether a pooling can do the padding by itself: zeros, at most half a kernel."""
        height, width = self.padding
        half = [k // 2 for k in self.kernel_size]
        return self._conv_can_pad(height, width) and height[0] <= half[0] and width[0] <= half[1]

    def pad(self, x: Tensor, height: Pair, width: Pair) -> Tensor:
        """Pad by the conv's padding mode; negative numbers crop."""
        if self.padding_mode == "zeros":
            return F.pad(x, (*width, *height))
        (top, bottom), (left, right) = self.padding
        padded = F.pad(x, (left, right, top, bottom), mode=self.padding_mode)
        crop = (width[0] - left, width[1] - right, height[0] - top, height[1] - bottom)
        return F.pad(padded, crop)


def _pair(value: object) -> Pair:
    first, second = value if isinstance(value, tuple) else (value, value)
    return int(first), int(second)
