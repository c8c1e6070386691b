"""Convolutions drawn at random, and statistics as if they had been trained."""

import torch
from hypothesis import strategies as st
from torch import nn


@st.composite
def convs(draw):
    """Draw a conv: kernels 1 to 7, even, odd, oblong; strides, paddings, groups, modes."""
    kernel = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)).filter(lambda k: max(k) > 1))
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    words = ["valid"] if stride != (1, 1) else ["valid", "same"]
    sizes = st.tuples(st.integers(0, 4), st.integers(0, 4))
    padding = draw(st.one_of(st.sampled_from(words), sizes))
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    inputs, outputs = (groups * draw(st.integers(1, 2)) for _ in range(2))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    return nn.Conv2d(
        inputs, outputs, kernel, stride, padding, dilation, groups,
        bias=draw(st.booleans()), padding_mode=mode, dtype=torch.float64,
    )  # fmt: skip


def randomise(module, spread=1.0):
    """Give every batch norm inside statistics and weights as if it had been trained.

    A small spread keeps a network of hundreds of layers from amplifying rounding.
    """
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(part.running_mean, 0, spread)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.weight, 1 - spread, spread)
            nn.init.normal_(part.bias, 0, spread)
