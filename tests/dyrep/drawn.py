"""Draw convolutions at random, and statistics like those of trained networks."""

import torch
from hypothesis import strategies as st
from torch import nn


@st.composite
def convs(draw):
    """Draw a conv: its kernel (1 to 7 in each direction), stride, padding, groups, padding mode."""
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
    """Set the statistics and weights of every batch norm as if the module had been trained.

    With a small spread, a network of hundreds of layers does not amplify rounding.
    """
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(part.running_mean, 0, spread)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.weight, 1 - spread, spread)
            nn.init.normal_(part.bias, 0, spread)
