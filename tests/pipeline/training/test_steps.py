"""Test a training step: reads from the device, clipping, accumulation, averages and agreement."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

import dyrep
from pipeline.config.train import Checkpoint
from pipeline.networks import optimizers
from pipeline.training import optim
from pipeline.training.agreement import Agreement
from pipeline.training.history import History
from pipeline.training.saver import Saver
from tests.pipeline.training.learning import ALONE, batch, learner

pytestmark = pytest.mark.long


class Reads(TorchDispatchMode):
    """A dispatch mode that counts how often the host reads a value of a tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def reads(tmp_path, *overrides, count=50):
    """Return how many values the host reads in `count` steps, after two steps that are not counted."""
    made = learner("method=dyrep", *overrides)
    watched = dyrep.DyRep(made.model, made.optimizer, saliency=made._config.method.saliency)
    history = History(tmp_path / "history.jsonl", ALONE, made._recipe, {})
    agreement = Agreement(ALONE, saver(tmp_path, "1000 steps"), lambda: False)

    def step(number):
        lr = made.lr
        history.batch_came()
        loss = made.update(batch(number), watched.accumulate)
        history.step(number, 1, loss, lr)
        agreement.after(number)

    for number in range(2):
        step(number)
    with Reads() as counter:
        for number in range(2, 2 + count):
            step(number)
    history.flush()
    assert history.rows == 2 + count
    return counter.count


def saver(tmp_path, interval):
    settings = Checkpoint(interval=interval, keep=2, interruption_hours=1.0)
    return Saver(tmp_path, settings, lambda: None, lambda *_: None)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.ema=0.9"], 0),
        (["train.precision=tf32"], 0),
        (["train.clip_grad=0.1"], 0),
        (["train.precision=bfloat16", "method.saliency=snip", "train.ema=0.9"], 0),
        (["method.saliency=synflow"], 0),
        (["train.accumulate=3", "train.batch_size=6"], 0),
        (["train.nonfinite=skip"], 100),  # each step reads whether loss and gradients are finite
        (["train.precision=float16", "train.clip_grad=0.1"], 50),  # as many as without clipping
        (["train.precision=float16"], 50),  # the fused kernel of a GPU needs no read
    ],
)
def test_a_step_reads_nothing_from_the_device(tmp_path, overrides, expected):
    assert reads(tmp_path, *overrides) == expected


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_gradients_are_clipped_and_growth_sees_them_unclipped(precision, nonfinite):
    settings = (f"train.precision={precision}", f"train.nonfinite={nonfinite}",
                "train.momentum=0", "train.nesterov=false", "train.weight_decay=0",
                "train.warmup_epochs=0")  # fmt: skip

    def step(limit):
        made, seen = learner(*settings, f"train.clip_grad={limit}"), []
        begun = [p.detach().clone() for p in made.model.parameters()]

        def accumulate(scaler):
            assert (scaler is None) == (limit != "null")
            scale = 1.0 if scaler is None else float(scaler.scale(torch.ones(())))
            seen.extend(p.grad / scale for p in made.model.parameters())

        made.update(batch(0), accumulate)
        moved = zip(begun, made.model.parameters(), strict=True)
        return seen, torch.cat([(a - b).detach().flatten() for a, b in moved]) / made._recipe.lr

    whole, free = step("null")
    seen, clipped = step(0.01)
    assert all(map(torch.equal, whole, seen))
    assert free.norm() > 0.1 and clipped.norm() == pytest.approx(0.01, rel=1e-3)
    assert torch.allclose(clipped, free * 0.01 / free.norm(), atol=1e-5)


STEADY = ("train.momentum=0", "train.nesterov=false", "train.weight_decay=0",
          "train.warmup_epochs=0", "train.lr=0.1", "train.batch_size=6")  # fmt: skip


def steady(*overrides):
    """Return a learner whose batch norms use their running statistics, not those of the batch."""
    made = learner(*STEADY, *overrides)
    for module in made.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return made


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_with_accumulated_gradients_equals_a_step_on_the_whole_batch(precision):
    whole, parts = (steady(f"train.precision={precision}", f"train.accumulate={n}") for n in (1, 3))
    looked = []
    losses = [
        made.update(batch(0), lambda scaler: looked.append(scaler)) for made in (whole, parts)
    ]
    assert len(looked) == 2  # saliencies are accumulated once per step
    near = 1e-6 if precision == "float32" else 5e-3
    assert torch.allclose(*losses, rtol=near)
    pairs = zip(whole.model.parameters(), parts.model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=near) for a, b in pairs)


def test_a_step_with_one_part_that_is_not_finite_is_skipped_as_a_whole():
    made = learner("train.batch_size=6", "train.accumulate=3", "train.nonfinite=skip")
    before = copy.deepcopy(made.model.state_dict())
    poisoned = batch(0)
    poisoned.images[2].fill_(torch.nan)  # image 2 is in the second of three parts
    assert made.update(poisoned, lambda _: None).isnan()
    assert all(map(torch.equal, before.values(), made.model.state_dict().values()))
    assert all(p.grad is None for p in made.model.parameters())


def test_processes_average_accumulated_gradients_once_per_step():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        made, sums = learner("train.batch_size=6", "train.accumulate=3"), []

        def hook(_, bucket):
            sums.append(bucket.buffer().clone())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        made._wrapped = DistributedDataParallel(made.model)
        made._wrapped.register_comm_hook(None, hook)
        seen = []
        made.update(batch(0), lambda _: seen.extend(p.grad.sum() for p in made.model.parameters()))
        assert len(sums) == 1
        assert sums[0].sum() == pytest.approx(sum(seen).item(), rel=1e-4)
    finally:
        dist.destroy_process_group()


def test_a_fused_optimizer_checks_scaled_gradients_without_a_read(tmp_path, monkeypatch):
    """The optimizers of a GPU are fused; torch's fused SGD for CPUs stands in for them."""
    build = optimizers.build

    def fused(*asked):
        groups = [{**group, "fused": True} for group in build(*asked).param_groups]
        return torch.optim.SGD(groups, fused=True)

    monkeypatch.setattr(optimizers, "build", fused)
    assert reads(tmp_path, "train.precision=float16", count=10) == 0
    assert reads(tmp_path, "train.precision=float16", "train.clip_grad=1", count=10) == 0


def test_a_skipped_first_step_of_a_fused_optimizer_leaves_zero_momenta():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    optim.arrange(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.ones(())
    optimizer.step()
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert len(momenta) == 2 and not any(momentum.any() for momentum in momenta)


def test_a_loaded_momentum_has_the_strides_of_its_weight():
    def made(layout, fused):
        model = torch.nn.Conv2d(4, 4, 3).to(memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
        model(torch.ones(1, 4, 3, 3)).sum().backward()
        optimizer.step()
        return model, optimizer

    _, plain = made(torch.contiguous_format, None)
    model, optimizer = made(torch.channels_last, True)
    saved = copy.deepcopy(plain.state_dict())
    optim.load(optimizer, saved)
    optim.arrange(optimizer)
    assert optimizer.param_groups[0]["fused"]
    momentum = optimizer.state[model.weight]["momentum_buffer"]
    assert momentum.stride() == model.weight.stride()
    assert torch.equal(momentum, saved["state"][0]["momentum_buffer"])


def test_the_average_of_weights_equals_that_of_torch():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    ours = optim.Averaged(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for step in range(6):
        if step == 3:  # resumed
            saved, ours = ours.state_dict(), optim.Averaged(model, 0.9)
            ours.load_state_dict(copy.deepcopy(saved))
        model(torch.randn(2, 3, 2, 2))
        with torch.no_grad():
            model[0].weight.add_(0.1)
        ours.update_parameters(model)
        theirs.update_parameters(model)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


def test_an_average_with_warmup_follows_the_weights_closely_at_first():
    model = torch.nn.Linear(1, 1, bias=False)
    average, expected = optim.Averaged(model, 0.5, warmup=True), None
    for step in range(12):
        if step == 6:  # resumed
            saved, average = average.state_dict(), optim.Averaged(model, 0.5, warmup=True)
            average.load_state_dict(copy.deepcopy(saved))
        value = float(step + 1)
        with torch.no_grad():
            model.weight.fill_(value)
        average.update_parameters(model)
        stays = min(0.5, (1 + step) / (10 + step))
        expected = value if expected is None else stays * expected + (1 - stays) * value
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-6)


class Two:
    """A stand-in for the world of two processes, seen from the main one; the other adds zeros."""

    alone, main = False, True

    def __init__(self):
        self.asked = []

    def beat(self):
        pass

    def sums(self, *values):
        self.asked.append(values)
        return list(values)


@pytest.mark.parametrize(
    ("seconds", "interval", "expected"),
    [
        (
            0.1,
            "1000 steps",
            [1, 3, 7, 15, 25, 35, 45],
        ),  # the distance doubles until it is 10 steps, about a second
        (3.0, "1000 steps", [1, 2, 3, 4, 5]),
        (
            0.001,
            "10 steps",
            [1, 3, 7, 10, 11, 13, 17, 20, 21],
        ),  # also at steps where a checkpoint is due
    ],
)
def test_processes_agree_about_once_a_second(tmp_path, monkeypatch, seconds, interval, expected):
    now = [0.0]
    monkeypatch.setattr("pipeline.training.agreement.time.monotonic", lambda: now[0])
    own, world, met, due = saver(tmp_path, interval), Two(), [], []
    own.begin(0, None)
    agreement = Agreement(world, own, lambda: False)
    for step in range(1, expected[-1] + 1):
        now[0] += seconds
        before = len(world.asked)
        _, save = agreement.after(step)
        if len(world.asked) > before:
            met.append(step)
        if save:
            due.append(step)
            own.begin(step, None)
    assert met == expected
    assert due == ([10, 20] if interval == "10 steps" else [])


def test_a_single_process_checks_for_a_stop_after_each_step(tmp_path):
    asked = []
    agreement = Agreement(ALONE, saver(tmp_path, "2 steps"), lambda: bool(asked.append(1)))
    assert [agreement.after(step) for step in (1, 2)] == [(False, False), (False, True)]
    assert len(asked) == 2
