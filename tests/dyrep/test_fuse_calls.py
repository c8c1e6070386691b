"""Test the fusion of networks whose inputs or outputs are not one tensor."""

from collections import namedtuple

import pytest
import torch
from torch import nn

import dyrep
from dyrep.fusion import plain_state
from dyrep.norm_pairs import following_norms, takes_shift
from dyrep.proof import relative_error, scores_error
from tests.dyrep.drawn import randomise
from tests.dyrep.networks import example, network


class Returning(nn.Module):
    """A network that returns what a function makes of its scores."""

    def __init__(self, make, norm=True):
        super().__init__()
        self.net, self.make = network(norm), make

    def forward(self, x):
        return self.make(self.net(x))


class Box:
    """An output that holds its tensors as attributes."""

    def __init__(self, scores):
        self.scores, self.itself, self.count = scores, self, 3


Pair = namedtuple("Pair", "scores classes")

RETURNED = {
    "none": lambda y: (y, None),
    "dict": lambda y: {"scores": y, "loss": None},
    "number": lambda y: [y, 3],
    "text": lambda y: (y, "a"),
    "named": lambda y: Pair(y, y.argmax(1)),
    "mask": lambda y: (y, y > 0),
    "object": Box,
    "distribution": lambda y: torch.distributions.Categorical(logits=y),
    "empty": lambda y: (y, y[:0]),
    "infinite": lambda y: y.masked_fill(y < y.mean(), -torch.inf),
    "complex": lambda y: torch.fft.fft(y),
    "classes alone": lambda y: y.argmax(1),
}


@pytest.mark.parametrize("kind", RETURNED)
def test_whatever_holds_tensors_is_compared(kind):
    model = Returning(RETURNED[kind]).eval()
    dyrep.expand(model)
    x = example()[0]
    fused = dyrep.fuse(model, inputs=x, fold_bn=True)
    assert type(fused.net[1]) is nn.Identity

    class Other(nn.Module):
        def forward(self, x):
            return x.roll(1, 1) if x.ndim == 2 else x  # moves the scores to other classes

    model.net.append(Other())
    fused = dyrep.fusion.plain_copy(model.double())
    fused.net[-1] = nn.Identity()
    error = scores_error(model(x.double()), fused(x.double()))
    assert error > 1e-3


def test_a_network_that_returns_no_tensor_is_refused_only_if_inputs_are_given():
    model = Returning(lambda y: None).eval()
    dyrep.expand(model)
    assert dyrep.fuse(model)
    with pytest.raises(ValueError, match="leave inputs out"):
        dyrep.fuse(model, inputs=example()[0])


class Taking(nn.Module):
    """A network whose forward takes images, classes and an option."""

    def __init__(self):
        super().__init__()
        self.net, self.table = network(), nn.Embedding(4, 4)

    def forward(self, x, classes, scale=None):
        y = self.net(x) + self.table(classes)
        return y if scale is None else y * scale


@pytest.mark.parametrize("named", [False, True])
def test_arguments_are_a_tuple_or_a_dict(named):
    model = Taking().eval()
    x, y = example()
    inputs = {"classes": y, "x": x, "scale": torch.tensor(2.0)} if named else (x, y)
    done = dyrep.expand(model, absorb=inputs)
    assert done.absorbed == ["net.1", "net.4"]
    randomise(model)
    fused = dyrep.fuse(model, inputs=inputs, fold_bn=True)
    assert relative_error(model(x, y), fused(x, y)) < 1e-5
    plain = Taking().eval()
    plain.load_state_dict(plain_state(dyrep.fuse(model), plain, inputs), strict=True)
    assert relative_error(model(x, y), plain(x, y)) < 1e-4


class Single(nn.Module):
    """A network that casts any input to float32."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x.float())


def test_a_network_that_cannot_run_in_float64_is_refused_if_inputs_are_given():
    model = Single().eval()
    dyrep.expand(model)
    with pytest.raises(ValueError, match="float64"):
        dyrep.fuse(model, inputs=example()[0])
    assert dyrep.fuse(model)(example()[0]).shape == (16, 4)


def test_a_network_made_in_inference_mode_can_be_trained_once_fused():
    x = example()[0]
    with torch.inference_mode():
        model = network().eval()
        dyrep.expand(model)
        randomise(model)
        expected = model(x)
        fused = dyrep.fuse(model, inputs=x, fold_bn=True)
    assert relative_error(expected.clone(), fused(x)) < 1e-5
    fused.train()(x.clone()).sum().backward()


@pytest.mark.parametrize("name", ["mobilenetv3_small_050"])
def test_the_plain_state_loads_strictly_where_norms_contain_the_activation(name):
    """Folded convs of a trained network have biases, which must move into these norms."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4)
    dyrep.expand(model, branches=["kxk", "1x1_avg"])
    randomise(model)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    fused = dyrep.fuse(model.double().eval())
    plain = timm.create_model(name, num_classes=4).double().eval()
    plain.load_state_dict(plain_state(fused, plain, x), strict=True)
    assert relative_error(fused(x), plain(x)) < 1e-9


class Squaring(nn.BatchNorm2d):
    """A batch norm of the squared input: a constant added to the input does not shift its mean."""

    def forward(self, x):
        return super().forward(x * x)


def test_norms_are_tested_for_shifts_and_a_norm_with_a_hook_is_not_folded():
    from timm.layers import BatchNormAct2d

    kinds = [nn.BatchNorm2d(4), BatchNormAct2d(4), Squaring(4), nn.GroupNorm(2, 4)]
    assert [takes_shift(kind) for kind in kinds] == [True, True, False, False]
    model = network()
    model[1].register_forward_hook(lambda *_: None)
    assert set(following_norms(model, example()[0])) == {"3"}
