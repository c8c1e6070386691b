"""Test networks that grow linear blocks: optimizers, averages, budgets, structures, refusals."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import dyrep
from dyrep import linear
from dyrep.block import called
from tests.dyrep.networks import batches, example, grow_at, network, optimizer_for, step
from tests.dyrep.test_linear import assert_same, both, grow, single

pytestmark = pytest.mark.long


def evolving(model=None, **options):
    model = network() if model is None else model
    optimizer = optimizer_for(model)
    return model, optimizer, dyrep.DyRep(model, optimizer, form="linear", **options)


def adjusted(evolver, path, calibration=None):
    """Make one conv the most salient and adjust, by default without batches; return the events."""
    for name, module in evolver.model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.weight.grad = torch.full_like(module.weight, 10.0 if name == path else 1e-6)
    evolver.accumulate()
    events = evolver.adjust(calibration)
    evolver.model.zero_grad()
    return events


@pytest.mark.parametrize("given_batches", [True, False])
def test_growing_again_and_cutting_need_no_calibration(given_batches):
    model, optimizer, evolver = evolving(network(norm=False).double())
    x = example(5)[0].double()
    before = both(model, x)
    inside = ["3", "3.branches.kxk.conv", "3.branches.1x1_kxk.conv"]
    calibration = batches(dtype=torch.float64) if given_batches else None
    for path in inside:
        (event,) = adjusted(evolver, path, calibration)
        assert (event.action, event.layer) == ("grow", path)
        assert event.error_eval < 1e-12
        assert event.error_train < 1e-12
        assert (event.flops is not None) is given_batches
        json.dumps(event.to_dict())
    assert_same(before, both(model, x))
    assert {p for g in optimizer.param_groups for p in g["params"]} == set(model.parameters())
    with torch.no_grad():  # make two branches weak
        for name in ("1x1", "kx1"):
            model[3].branches[name].scale.mul_(1e-3)
    before = both(model, x)
    events = adjusted(evolver, "0", calibration)
    assert [(e.action, e.layer) for e in events] == [("grow", "0"), ("cut", "3")]
    assert set(model[3].names) == {*dyrep.ALL_BRANCHES} - {"1x1", "kx1"}
    assert_same(before, both(model, x))
    assert called(model, inside[2]) == "3"


def test_only_a_branch_that_has_faded_since_it_was_new_is_cut():
    model = network()
    dyrep.expand(model, branches=dyrep.ALL_BRANCHES, form="linear")
    weights = dyrep.branch_weights(model)["3"]
    assert weights["1x1_avg"] < 0.1, "the new branch is above the published threshold"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    evolver = dyrep.DyRep(model, optimizer, form="linear", grow=0)

    def adjust():
        step(model, optimizer, evolver)
        return [(event.layer, event.branches) for event in evolver.adjust()]

    assert adjust() == []
    with torch.no_grad():
        model[3].branches["1x1_avg"].scale.mul_(0.3)
        model[3].branches["1xk"].scale.mul_(0.3)
    again = dyrep.DyRep(model, optimizer, form="linear", grow=0)
    assert adjust() == []
    again.load_state_dict(evolver.state_dict())
    with torch.no_grad():
        model[3].branches["1xk"].scale.mul_(0.2)  # 0.06 of its value when new
    evolver = again
    kept = [name for name in dyrep.ALL_BRANCHES if name != "1xk"]
    assert adjust() == [("3", kept)]


def test_a_branch_weighs_its_share_of_the_kernel():
    model = single()
    block = grow(model, "0", ["1x1", "identity"])
    whole = block.composed(torch.float64).norm()
    part = block.branches["1x1"].scale[:, None, None, None] * block.branches["1x1"].conv.weight
    assert dyrep.branch_weights(model)["0"] == pytest.approx(
        {"1x1": (part.norm() / whole).item(), "identity": (0.5 * 4**0.5 / whole).item()}
    )


def test_an_average_grows_and_is_cut_too_and_keeps_its_function():
    model, optimizer, _ = evolving(network().double())
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    evolver = dyrep.DyRep(model, optimizer, ema=average, form="linear")
    x = example(50)[0].double()

    def train():
        for seed in range(3):
            images, labels = example(seed)
            cross_entropy(model(images.double()), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)

    train()
    before = both(average, x)
    adjusted(evolver, "3")
    assert_same(before, both(average, x))
    train()
    before = both(average, x)
    with torch.no_grad():
        model[3].branches["kx1"].scale.zero_()
    assert [event.action for event in adjusted(evolver, "0")] == ["grow", "cut"]
    assert average.module[3].names == model[3].names
    assert_same(before, both(average, x))
    train()


def test_a_resumed_training_has_the_same_bits():
    model, optimizer, evolver = evolving()
    for seed in range(2):
        step(model, optimizer, evolver, seed)
    evolver.adjust()
    step(model, optimizer, evolver, 2)
    state = copy.deepcopy(
        [dyrep.structure(model), model.state_dict(), optimizer.state_dict(), evolver.state_dict()]
    )
    other = network()
    dyrep.apply_structure(other, json.loads(json.dumps(state[0])))
    other.load_state_dict(state[1], strict=True)
    _, other_optimizer, other_evolver = evolving(other)
    other_optimizer.load_state_dict(state[2])
    other_evolver.load_state_dict(state[3])
    for m, o, e in ((model, optimizer, evolver), (other, other_optimizer, other_evolver)):
        step(m, o, e, 3)
        e.adjust()
        step(m, o, e, 4)
    ours, theirs = model.state_dict(), other.state_dict()
    assert dyrep.structure(model) == dyrep.structure(other)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_the_score_of_a_grown_conv_is_that_of_its_own_kernel():
    model, _, evolver = evolving(saliency="snip")
    adjusted(evolver, "3")
    kernel = model[3].kernel
    images, labels = example()
    cross_entropy(model(images), labels).backward()
    evolver.accumulate()
    scores = evolver.state_dict()["saliency"]
    score = dict(zip(scores["paths"], scores["sums"].tolist(), strict=True))
    expected = (kernel * kernel.grad).abs().sum().item()
    assert score["3.branches.kxk.conv"] == pytest.approx(expected, rel=1e-5)
    assert all(p.grad is not None for p in model.parameters())


def decay_of(optimizer, parameters):
    return {
        group["weight_decay"]
        for group in optimizer.param_groups
        for p in group["params"]
        if any(p is q for q in parameters)
    }


@pytest.mark.parametrize("kind", ["two groups", "one group", "no vectors"])
def test_scales_do_not_decay(kind):
    model = network(norm=False, bias=False) if kind == "no vectors" else network()
    if kind == "no vectors":
        model[-1] = nn.Linear(6, 4, bias=False)
    optimizer = (
        optimizer_for(model)
        if kind == "two groups"
        else torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    )
    evolver = dyrep.DyRep(model, optimizer, form="linear")
    for path in ("3", "0"):
        adjusted(evolver, path)
    assert len(optimizer.param_groups) == 2
    assert decay_of(optimizer, dyrep.scales(model).values()) == {0}
    assert {p for g in optimizer.param_groups for p in g["params"]} == set(model.parameters())
    step(model, optimizer)


def test_a_schedule_that_makes_scales_decay_causes_a_warning():
    """A schedule counts the groups of its optimizer once, so none may be added later."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.warns(UserWarning, match="weight_decay=0"):
        adjusted(dyrep.DyRep(model, optimizer, form="linear"), "3")
    step(model, optimizer)
    schedule.step()


def test_composing_is_shared_by_the_images_of_a_batch():
    model = single(6, 6).float()
    plain = dyrep.cost(model, torch.zeros(8, 6, 8, 8)).flops
    grow(model, "0", ["1x1_kxk"])
    composing = 2 * 6 * 6 * 6 * 9
    assert dyrep.cost(model, torch.zeros(8, 6, 8, 8)).flops == plain + composing // 8
    assert dyrep.cost(model, torch.zeros(1, 6, 8, 8)).flops == plain + composing


@pytest.mark.parametrize("measure", ["flops", "seconds"])
def test_a_budget_counts_what_linear_blocks_cost(measure):
    model, _, evolver = evolving(max_cost=50.0, cost=measure)
    for path in ("3", "3.branches.1x1_kxk.conv"):
        (event,) = adjusted(evolver, path, batches())
        assert event.layer == path
    assert dyrep.cost(model, batches()[0]).flops == event.flops


def blocks_of(form):
    model = network()
    dyrep.expand(model, ["3"], form=form)
    return model


NAN = torch.full((2, 3, 8, 8), float("nan"))
REFUSED = {
    "unknown form": (lambda: dyrep.DyRep(network(), form="diverse"), r"unknown form 'diverse'; choose"),
    "unknown form of expand": (lambda: dyrep.expand(network(), form="x"), "unknown form 'x'"),
    "unknown branch": (
        lambda: dyrep.expand(network(), branches=["3x3"], form="linear"), "unknown branches"
    ),
    "another form": (
        lambda: dyrep.DyRep(blocks_of("batchnorm"), form="linear"), r"blocks are 'batchnorm' \(3\)"
    ),
    "the other way": (lambda: dyrep.DyRep(blocks_of("linear")), r"blocks are 'linear' \(3\)"),
    "a norm inside": (
        lambda: dyrep.expand(blocks_of("linear"), ["3.branches.kxk.conv"]), "are 'linear'"
    ),
    "mixed": (lambda: dyrep.expand(blocks_of("batchnorm"), form="linear"), "are 'batchnorm'"),
    "absorb": (
        lambda: dyrep.expand(network(), absorb=batches()[0], form="linear"), "leave absorb out"
    ),
    "strength": (lambda: dyrep.DyRep(network(), form="linear", strength=0.0), "strength=0.0"),
    "a structure of an unknown form": (
        lambda: dyrep.apply_structure(
            network(), {**dyrep.structure(blocks_of("linear")), "form": "diverse"}
        ), "unknown form",
    ),
    "no batches for norms": (lambda: adjusted(dyrep.DyRep(network()), "3"), "need statistics"),
    "no batches for a budget": (
        lambda: adjusted(dyrep.DyRep(network(), form="linear", max_cost=2.0), "3"), "max_cost"
    ),
    "no batches for FLOPs": (
        lambda: adjusted(dyrep.DyRep(network(), form="linear", saliency="gain_per_flop"), "3"),
        "gain_per_flop",
    ),
    "no batch": (lambda: adjusted(evolving()[2], "3", []), "at least one batch"),
    "an empty batch": (lambda: adjusted(evolving()[2], "3", [NAN[:0]]), "batch 0 is empty"),
    "not finite": (
        lambda: adjusted(evolving()[2], "3", [*batches(1), NAN]), "batch 1 holds values that are not"
    ),
    "not finite for norms": (
        lambda: adjusted(dyrep.DyRep(network()), "3", [NAN]), "batch 0 holds values that are not"
    ),
    "a tuple": (lambda: adjusted(evolving()[2], "3", [example()]), "batch 0 is a tuple"),
    "a dict": (lambda: adjusted(evolving()[2], "3", {"x": NAN}), "not a dict"),
    "a tensor": (lambda: adjusted(evolving()[2], "3", batches()[0]), r"\[batch\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line(case):
    call, words = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_nothing_is_changed_by_an_adjustment_that_is_refused():
    model, _, evolver = evolving()
    with pytest.raises(ValueError, match="not finite"):
        adjusted(evolver, "3", [NAN])
    assert not dyrep.structure(model)["blocks"]
    assert grow_at(evolver, "3")[0].branches == list(dyrep.ALL_BRANCHES)
    assert isinstance(model[3], linear.LinearBlock)
