"""Test blocks under checkpointing, torch.func and inference_mode: they work or are refused."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import dyrep
from dyrep.saliency import Saliency
from tests.dyrep.networks import example, network

FORMS = ("batchnorm", "linear")


@pytest.fixture(params=FORMS)
def model(request):
    """Return a small float64 network with every branch and statistics of three batches."""
    model = network().double().train()
    dyrep.expand(model, branches=dyrep.ALL_BRANCHES, form=request.param)
    for seed in range(3):
        model(2 * example(seed)[0].double() + 1)
    return model


def loss(scores):
    return nn.functional.cross_entropy(scores, example()[1])


def gradients(model, run):
    copied = copy.deepcopy(model)
    run(copied)
    return torch.cat([parameter.grad.flatten() for parameter in copied.parameters()])


def images(seed=0):
    return example(seed)[0].double().requires_grad_()


def test_checkpointing_changes_no_gradient_of_two_forwards(model):
    """Of two forwards before backward, the second must not replace what the first has saved."""

    def run(call):
        return lambda m: (loss(call(m, images())) + loss(call(m, 3 * images(1)))).backward()

    def repeated(m, x):
        return checkpoint(m, x, use_reentrant=False)

    expected = gradients(model, run(lambda m, x: m(x)))
    assert torch.equal(gradients(model, run(repeated)), expected)


def test_an_evaluation_before_backward_changes_no_gradient(model):
    def run(m, between=lambda m: None):
        scores = checkpoint(m, images(), use_reentrant=False)
        between(m)
        loss(scores).backward()

    def evaluate(m):
        m.eval()(images(1))
        m.train()

    assert torch.equal(gradients(model, lambda m: run(m, evaluate)), gradients(model, run))


def test_reentrant_checkpointing_is_refused_where_it_would_be_wrong():
    model = network().train()
    dyrep.expand(model, branches=["1x1_avg"])
    x = example()[0].requires_grad_()
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        loss(checkpoint(model, x, use_reentrant=True)).backward()


def test_an_evaluation_updates_the_border_to_the_statistics():
    """A frozen branch, too, computes its border again after an evaluation."""
    trained = network().train()
    dyrep.expand(trained, ["0"], branches=["1x1_kxk"])
    trained.requires_grad_(False)
    x = example()[0]
    first = trained(x)
    assert torch.equal(trained(x), first)  # from the held border
    trained.eval()(x)
    assert not torch.equal(trained.train()(x), first)


@pytest.mark.parametrize("order", ["first", "second"])
def test_replaced_parameters_get_their_own_gradients(model, order):
    """Backward must recompute from the replaced parameters, not from those in the module."""

    def replaced(m):
        other = {k: (1.5 * v.detach()).requires_grad_() for k, v in m.named_parameters()}
        penalty(functional_call(m, other, (x := images(),)), x)
        for name, parameter in m.named_parameters():
            parameter.grad = other[name].grad

    def scaled(m):
        with torch.no_grad():
            for parameter in m.parameters():
                parameter.mul_(1.5)
        penalty(m(x := images()), x)

    def penalty(scores, x):
        if order == "first":
            return loss(scores).backward()
        (slope,) = torch.autograd.grad(loss(scores), x, create_graph=True)
        return (loss(scores) + slope.square().sum()).backward()

    assert torch.equal(gradients(model, replaced), gradients(model, scaled))


def test_linear_weights_changed_before_backward_are_refused():
    model = network().train()
    dyrep.expand(model, form="linear")
    scores = model(example()[0])
    with torch.no_grad():
        model[0].branches["1x1_kxk"].conv.weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed between"):
        loss(scores).backward()


def test_torch_func_transforms_work(model):
    model.eval()
    x, y = example()
    x = x.double()
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def total(weights, x, y):
        return nn.functional.cross_entropy(functional_call(model, weights, (x,)), y)

    torch.testing.assert_close(vmap(lambda one: model(one[None])[0])(x), model(x))
    loss(model(x)).backward()
    for name, found in grad(total)(weights, x, y).items():
        torch.testing.assert_close(found, model.get_parameter(name).grad)
    assert jvp(model, (x,), (x,))[1].shape == (16, 4)
    each = vmap(grad(lambda w, x, y: total(w, x[None], y[None])), (None, 0, 0))(weights, x, y)
    torch.testing.assert_close(
        each["0.branches.1x1_kxk.reduce.weight"].mean(0),
        model[0].branches["1x1_kxk"].reduce.weight.grad,
    )


def test_a_network_without_running_statistics_is_refused_with_the_reason():
    model = network()
    dyrep.expand(model)
    torch.func.replace_all_batch_norm_modules_(model)
    with pytest.raises(RuntimeError, match="running statistics"):
        model(example()[0])


@pytest.mark.parametrize("form", FORMS)
def test_inference_mode_builds_runs_and_fuses(form):
    model = network().eval()
    dyrep.expand(model, form=form)
    x = example()[0]
    with torch.inference_mode():
        built = network().eval()
        dyrep.apply_structure(built, dyrep.structure(model))
        built.load_state_dict(model.state_dict())
        torch.testing.assert_close(built(x), model(x))
        for one in (built, model):
            fused = dyrep.fuse(one, inputs=x)
            torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["synflow", "gain", "snip"])
def test_scores_keep_the_dtype_of_the_weights(name):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3).double()
    conv.weight.grad = torch.randn_like(conv.weight)
    conv.weight.grad -= (
        conv.weight * (conv.weight.grad * conv.weight).sum() / conv.weight.norm() ** 2
    )
    saliency = Saliency(name)
    saliency.watch({"0": conv})
    saliency.accumulate()
    ((_, score),) = saliency.ranking(torch.Generator())
    g, w = conv.weight.grad, conv.weight.detach()
    expected = {
        "synflow": (g * w).sum(),
        "gain": g.square().sum() / 72,
        "snip": (g * w).abs().sum(),
    }
    assert abs(score - expected[name].item()) < 1e-13
