"""Test `training.growable`: which convolutions a method leaves alone, and why."""

import pytest
import torch
from torch import nn

from pipeline.config.model import DyRep, Plain, Static
from pipeline.display.errors import UserError
from pipeline.networks import architectures
from pipeline.training.growable import left_alone, reasons
from pipeline.training.growth import prepare

DYREP = DyRep.model_construct(kind="dyrep", name="dyrep", branches=["kxk", "1x1"])
DBB = Static.model_construct(kind="static", name="dbb", branches=["kxk", "1x1"])
PLAIN = Plain.model_construct(kind="plain", name="plain")


class Other(nn.Conv2d):
    """A subclass of Conv2d, which might compute something else than a convolution."""


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))


def pointwise():
    return nn.Sequential(nn.Conv2d(3, 4, 1))


def subclassed():
    return nn.Sequential(Other(3, 4, 3), Other(4, 4, 3))


def shared():
    conv = nn.Conv2d(3, 3, 3)
    return nn.Sequential(conv, conv)


def frozen():
    return nn.Sequential(nn.Conv2d(3, 4, 3)).requires_grad_(False)


@pytest.mark.parametrize("method", [DYREP, DBB])
@pytest.mark.parametrize(
    ("build", "why"),
    [
        (linear, "no convolution larger than 1x1"),
        (pointwise, "no convolution larger than 1x1"),
        (subclassed, r"2 convolutions left alone: a subclass of Conv2d \(Other\).*\(0, 1\)"),
        (shared, "shared between paths"),
        (frozen, "1 convolution left alone: frozen"),
        (lambda: architectures.from_timm("test_nfnet", 10), "left alone"),
    ],
)
def test_a_method_that_would_change_nothing_is_refused(method, build, why):
    with torch.device("meta"):
        network = build()
    with pytest.raises(UserError, match=f"method={method.name} would change nothing.*{why}"):
        left_alone(network, method)
    assert left_alone(network, PLAIN) == {}


def test_convolutions_left_alone_are_listed_once_per_reason():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), *(Other(4, 4, 3) for _ in range(4)))
    left = left_alone(network, DYREP)
    assert list(left) == ["1", "2", "3", "4"]
    (line,) = reasons(left)
    assert line.startswith("4 convolutions left alone: a subclass")
    assert line.endswith("(1, 2, 3, …)")


@pytest.mark.parametrize(("start", "added"), [("drawn", 0.0), ("identity", 1.0)])
def test_kernels_start_as_method_start_says(start, added):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
    before = model[0].weight.detach().clone()
    prepare(model, PLAIN.model_copy(update={"start": start}), seed=0, size=(3, 8, 8))
    after = model[0].weight.detach() - before
    centre = after[range(4), range(4), 1, 1]
    torch.testing.assert_close(centre, torch.full((4,), added))
    assert after.abs().sum() == pytest.approx(4 * added, abs=1e-5)
