"""Test that an error names what cannot follow a change, and that a failure changes nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, update_bn

import dyrep
from dyrep.block import FixedNorm
from dyrep.proof import relative_error
from tests.dyrep.networks import batches, example, grow_at, grown, network

pytestmark = pytest.mark.long


def snapshot(model):
    modules = {path: (id(m), sorted(vars(m)), m.training) for path, m in model.named_modules()}
    return modules, {key: value.clone() for key, value in model.state_dict().items()}


def same(before, after):
    return before[0] == after[0] and all(
        torch.equal(value, after[1][key]) for key, value in before[1].items()
    )


# Averages


def test_a_forgotten_average_refuses_the_next_update():
    model = network()
    forgotten, followed = AveragedModel(model), AveragedModel(model)
    kept = copy.deepcopy(forgotten)
    grow_at(dyrep.DyRep(model, ema=followed), "3")
    for average in (forgotten, kept):
        before = snapshot(average)
        with pytest.raises(RuntimeError, match="ema="):
            average.update_parameters(model)
        assert same(before, snapshot(average))
    followed.update_parameters(model)
    copy.deepcopy(forgotten).update_parameters(network())


def test_an_average_of_another_network_is_refused():
    with pytest.raises(ValueError, match="ema"):
        dyrep.DyRep(network(), ema=network(norm=False))


# Fixed norms


@pytest.mark.parametrize("convert", ["sync", "update_bn"])
def test_a_fixed_norm_stays_fixed(convert):
    model = network(norm=False)
    grow_at(dyrep.DyRep(model), "3")
    x = example()[0]
    expected = model.eval()(x)
    if convert == "sync":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    else:
        update_bn(batches(), model.train())
    assert type(model[3].kxk.norm) is FixedNorm
    seen = model[3].kxk.norm(torch.randn(2, 6, 4, 4) * 9)
    model.eval()
    assert torch.equal(model[3].kxk.norm.running_mean, model[3].kxk.norm.running_mean)
    assert seen.abs().max() > 3  # not normalised by the statistics of this batch
    assert convert == "update_bn" or torch.equal(model(x), expected)


# Cutting and calibration


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("gamma", [1e-4, 1e-9, 0.0])
@pytest.mark.parametrize("channels", [slice(2, 3), slice(None)])
def test_cutting_beside_a_gamma_of_zero_keeps_the_function(gamma, channels, nested):
    model = network().double()
    dyrep.expand(model)
    if nested:
        dyrep.block.place_block(model, "3.branches.kxk.conv", dyrep.ALL_BRANCHES)
        model.double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.bias, -1, 1)
    with torch.no_grad():
        model[3].kxk.norm.weight[channels] = gamma
        if nested:
            model[3].inner.kxk.norm.weight[channels] = gamma
    x = example()[0].double()
    before = model.eval()(x)
    dyrep.cut(model, "3", ["1x1", "1x1_kxk"], batches(dtype=torch.float64))
    assert relative_error(before, model(x)) < 1e-12
    assert model[3].kernel.abs().max() < 1e4


def not_finite_inside():
    """Return a finite batch that overflows inside the network."""
    return [torch.full((2, 3, 8, 8), 3e38)]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (not_finite_inside(), "not finite"),
        ([torch.randn(1, 3, 1, 1)], "one value per channel"),
        ([*batches(1), torch.randn(1, 5, 8, 8)], "channels"),
    ],
    ids=["overflow", "one pixel", "another shape"],
)
def test_a_calibration_that_fails_changes_nothing(given, reason):
    model, optimizer, _ = grown("0")
    average = copy.deepcopy(model)
    evolver = dyrep.DyRep(model, optimizer, ema=average, grow=2)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    evolver.accumulate()
    before = snapshot(model), snapshot(average)
    held = [list(group["params"]) for group in optimizer.param_groups]
    with pytest.raises((ValueError, RuntimeError), match=reason):
        evolver.adjust(given)
    assert same(before[0], snapshot(model)) and same(before[1], snapshot(average))
    assert held == [group["params"] for group in optimizer.param_groups]
    with pytest.raises((ValueError, RuntimeError), match=reason):
        dyrep.cut(model, "0", ["1x1"], given)
    assert same(before[0], snapshot(model))


# Convs with hooks or parametrizations


def replaced(conv):
    forward = conv.forward
    conv.forward = lambda x: 2 * forward(x)


MARKED = {
    "forward": (replaced, "forward was replaced"),
    "backward hook": (lambda c: c.register_full_backward_hook(lambda *_: None), "hooks"),
    "backward pre-hook": (lambda c: c.register_full_backward_pre_hook(lambda *_: None), "hooks"),
    "pruned": (lambda c: prune.l1_unstructured(c, "weight", 0.5), "hooks"),
    "weight norm": (nn.utils.parametrizations.weight_norm, "subclass"),
}


@pytest.mark.parametrize("kind", MARKED)
def test_a_conv_with_hooks_or_parametrizations_is_left_alone_and_fuses(kind):
    mark, reason = MARKED[kind]
    model = network().eval()
    mark(model[3])
    x = example()[0]
    expected = model(x)
    done = dyrep.expand(model)
    assert set(done.grown) == {"0"}
    assert reason in done.left["3"]
    if kind != "forward":  # a copy would share the closure
        model(x).sum().backward()
        assert relative_error(model(x), dyrep.fuse(model, inputs=x)(x)) < 1e-5
    assert expected.shape == model(x).shape


def test_hooks_on_a_block_stay_when_it_is_a_conv_again():
    model = grown()[0].eval()
    seen = []
    handle = model[3].register_forward_hook(lambda *_: seen.append("forward"))
    dyrep.fuse(model)
    seen.clear()
    dyrep.fuse(model)(example()[0])
    assert "forward" in seen
    dyrep.cut(model, "3", [n for n in model[3].names if n != "kxk"], batches())
    assert type(model[3]) is nn.Conv2d
    seen.clear()
    model(example()[0])
    assert seen == ["forward"]
    handle.remove()
    model(example()[0])
    assert seen == ["forward"]


def test_cutting_beside_a_pruned_conv_is_refused():
    model = grown()[0]
    prune.l1_unstructured(model[3].kxk.conv, "weight", 0.5)
    before = snapshot(model)
    with pytest.raises(ValueError, match="prune"):
        dyrep.cut(model, "3", ["1x1"], batches())
    assert same(before, snapshot(model))


NOTHING = {
    "Conv1d": lambda: nn.Sequential(nn.Conv1d(3, 8, 3)),
    "Conv3d": lambda: nn.Sequential(nn.Conv3d(3, 8, 3)),
    "ScriptModule": lambda: torch.jit.script(network()),
    "no Conv2d": lambda: nn.Sequential(nn.Linear(3, 3), nn.Conv2d(3, 3, 1)),
}


@pytest.mark.parametrize("kind", NOTHING)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_network_in_which_nothing_can_grow_causes_a_warning(kind):
    model = NOTHING[kind]()
    for call in (dyrep.expand, dyrep.DyRep):
        with pytest.warns(UserWarning, match=f"nothing to do.*{kind}"):
            call(model)


# Structures

WRONG = {
    "none": None,
    "empty": {},
    "no absorbed": {"version": 1, "blocks": [], "biases": []},
    "no path": {"version": 1, "blocks": [{}], "biases": [], "absorbed": []},
}
CHANGED = {
    "unknown path": {"path": "9", "branches": ["kxk"], "fixed": False},
    "not a conv": {"path": "1", "branches": ["kxk"], "fixed": False},
    "unknown branch": {"path": "3", "branches": ["kxk", "3x3"], "fixed": False},
    "unfit branch": {"path": "0", "branches": ["kxk", "identity"], "fixed": False},
}


@pytest.mark.parametrize("kind", [*WRONG, *CHANGED, "absorbed", "absorbed conv", "bias"])
def test_a_wrong_structure_changes_nothing(kind):
    good = dyrep.structure(grown("0")[0])
    lists = {
        "absorbed": ("absorbed", "9"),
        "absorbed conv": ("absorbed", "3"),
        "bias": ("biases", "9"),
    }
    if kind in lists:
        key, path = lists[kind]
        wrong = {**good, key: [path]}
    elif kind in CHANGED:
        wrong = {**good, "blocks": [*good["blocks"], CHANGED[kind]]}
        wrong["blocks"] = wrong["blocks"][::-1] if kind == "unfit branch" else wrong["blocks"]
    else:
        wrong = WRONG[kind]
    model = network()
    before = snapshot(model)
    with pytest.raises(ValueError):
        dyrep.apply_structure(model, wrong)
    assert same(before, snapshot(model))


class Twice(nn.Module):
    """A network that calls its conv twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(self.conv(x) * 5 + 3)


def test_the_error_in_train_mode_is_right_for_a_conv_that_is_called_twice():
    model = Twice().train()
    evolver = dyrep.DyRep(model)
    before = copy.deepcopy(model)
    (event,) = grow_at(evolver, "conv")
    x = batches()[0]
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.0
    with torch.no_grad():
        assert event.error_train == pytest.approx(
            relative_error(before.conv(x), model.conv(x)), rel=0.05
        )
