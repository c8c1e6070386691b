"""Build small networks, batches and steps for the tests of the library."""

import torch
from torch import nn

import dyrep


def network(norm=True, bias=True):
    """Return a classifier of images (N, 3, 8, 8) in 4 classes: two convs and a linear layer."""
    torch.manual_seed(3)
    layers = []
    for inputs in (3, 6):
        layers += [nn.Conv2d(inputs, 6, 3, padding=1, bias=bias)]
        layers += [nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def groups(model):
    """Return two parameter groups: weights, which decay, and vectors, which do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 1e-3},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def optimizer_for(model):
    return torch.optim.SGD(groups(model), lr=0.1, momentum=0.9)


def batches(count=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(8, 3, 8, 8, generator=generator).to(dtype) for _ in range(count)]


def example(seed=0, count=16):
    """Return images (count, 3, 8, 8) and labels (count,)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    return images, torch.randint(0, 4, (count,), generator=generator)


def step(model, optimizer, evolver=None, seed=0):
    x, y = example(seed)
    model.train()
    nn.functional.cross_entropy(model(x), y).backward()
    if evolver:
        evolver.accumulate()
    optimizer.step()
    optimizer.zero_grad()


def grown(path="3", **options):
    """Return a model, its optimizer and its evolver after one step and the growth of one conv."""
    model = network()
    optimizer = optimizer_for(model)
    evolver = dyrep.DyRep(model, optimizer, **options)
    step(model, optimizer)
    grow_at(evolver, path)
    return model, optimizer, evolver


def grow_at(evolver, path):
    """Make one conv the most salient, then adjust; return the events."""
    for name, module in evolver.model.named_modules():
        if isinstance(module, nn.Conv2d):
            size = 10.0 if name == path else 1e-6
            module.weight.grad = torch.full_like(module.weight, size)
    evolver.accumulate()
    events = evolver.adjust(batches(dtype=next(evolver.model.parameters()).dtype))
    for parameter in evolver.model.parameters():
        parameter.grad = None
    return events
