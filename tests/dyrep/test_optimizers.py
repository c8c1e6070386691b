"""Test that optimizers and wrappers follow a change, or are refused if they cannot."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import dyrep
from tests.dyrep.networks import batches, example, grow_at, grown, network, step

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def alone():
    """Provide a process group of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def layered(flat_bias, split, preact=False):
    """Return a flat network, and a function that makes groups with a learning rate per layer."""
    layers = []
    for inputs in (3, 8, 8, 8):
        conv = nn.Conv2d(inputs, 8, 3, padding=1, bias=flat_bias)
        norm = nn.BatchNorm2d(inputs if preact else 8)
        layers += [norm, conv, nn.ReLU()] if preact else [conv, norm, nn.ReLU()]
    model = nn.Sequential(*layers)

    def make(model):
        groups = []
        for index in range(4):
            of = [*model[3 * index].parameters(), *model[3 * index + 1].parameters()]
            if split:
                decays = {True: [p for p in of if p.ndim > 1], False: [p for p in of if p.ndim < 2]}
                for decay, some in decays.items():
                    groups.append({"params": some, "lr": index + 1.0, "weight_decay": 0.1 * decay})
            else:
                groups.append({"params": of, "lr": index + 1.0})
        return groups

    return model, make


@pytest.mark.parametrize("form", ["batchnorm", "linear"])
@pytest.mark.parametrize(
    "options", [(False, False), (True, False), (False, True), (True, True), (False, True, True)]
)
def test_layers_with_flat_names_keep_their_learning_rates(options, form):
    model, make = layered(*options)
    optimizer = torch.optim.SGD(make(model), lr=1.0, momentum=0.9)
    layer = 10 if len(options) == 3 else 9
    grow_at(dyrep.DyRep(model, optimizer, form=form), str(layer))
    rate = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model[layer].named_parameters():
        assert rate[parameter] == 4.0, name
        assert decay[parameter] == (0.1 if options[1] and parameter.ndim > 1 else 0.0), name
    fresh = layered(*options)[0]
    dyrep.apply_structure(fresh, dyrep.structure(model))
    torch.optim.SGD(make(fresh), lr=1.0, momentum=0.9).load_state_dict(optimizer.state_dict())


WHOLE = {
    "lbfgs": lambda p: torch.optim.LBFGS(p),
    "zero": lambda p: ZeroRedundancyOptimizer(p, torch.optim.SGD, lr=0.1),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_optimizers_with_parameters_of_their_own_are_refused(kind, alone):
    model = network()
    with pytest.raises(TypeError, match="parameters of its own"):
        dyrep.DyRep(model, WHOLE[kind](model.parameters()))


class Around(torch.optim.SGD):
    """A stand-in for SAM: it shares the groups of the optimizer inside, but not its state."""

    def __init__(self, base):
        super().__init__(base.param_groups, lr=0.1)
        self.base = base
        base.param_groups = self.param_groups


def test_an_optimizer_and_the_one_around_it_both_follow():
    model = network()
    optimizer = Around(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    grow_at(dyrep.DyRep(model, optimizer), "3")
    step(model, optimizer.base)
    before = dict(model.named_parameters())
    dyrep.cut(model, "3", [n for n in model[3].names if n != "kxk"], batches())
    dyrep.surgery.follow(optimizer, model, before)
    assert set(optimizer.base.state) <= set(model.parameters())


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_fused_optimizers_train_the_new_branches(kind):
    options = {"momentum": 0.9} if kind == "SGD" else {}
    model = network()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1, fused=True, **options)
    step(model, optimizer)
    grow_at(dyrep.DyRep(model, optimizer), "3")
    before = {name: p.detach().clone() for name, p in model[3].named_parameters()}
    for seed in range(2):
        step(model, optimizer, seed=seed)
    assert not [name for name, p in model[3].named_parameters() if torch.equal(before[name], p)]


@pytest.mark.parametrize("change", ["adjust", "expand", "cut"])
def test_a_wrapper_made_before_a_change_refuses_to_run_and_a_new_one_runs(alone, change):
    model = grown()[0] if change == "cut" else network()
    evolver = dyrep.DyRep(model)
    ddp = DistributedDataParallel(nn.Sequential(nn.Identity(), model))
    x = example()[0]
    ddp(x)
    if change == "adjust":
        grow_at(evolver, "0")
    elif change == "expand":
        dyrep.expand(model)
    else:
        dyrep.cut(model, "3", ["1x1"], batches())
    with pytest.raises(RuntimeError, match="rewrap"):
        ddp(x)
    dyrep.rewrap(ddp)(x).sum().backward()
    model(x)
