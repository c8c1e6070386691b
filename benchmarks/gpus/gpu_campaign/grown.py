"""Time a training step with branches on every convolution, beside the plain network.

`plain` is the network itself. `dbb` has DBB's branches, whose norms replace those behind the convs.
`grown, FORM` has all branches of the published code, in each form of the library. `published` is
that code with the same branches (`--reference`, a checkout of
github.com/hunto/image_classification_sota). All run the bare loop, in channels_last.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args, get_type_hints

import torch
from torch import nn

import dyrep
from benchmarks import PUBLISHED_BRANCHES
from benchmarks.gpu_campaign import measure
from benchmarks.gpu_campaign.loops import DEVICE, Bare, Task
from benchmarks.gpu_campaign.report import Report, Request
from benchmarks.gpu_campaign.steps import STEPS, tasks
from dyrep import surgery
from dyrep.block import outer_blocks

COMPILED = "resnet18"  # only one network, because compiling a grown network takes long


def run(request: Request, report: Report) -> None:
    rounds = 2 if request.small else 5
    for name, task in reversed(tasks(request.small).items()):
        if report.fits(name, 20):
            measured(report, name, task, dict(changes(task, request.reference)), rounds)
    for name, task in tasks(request.small).items():
        if name == COMPILED and report.fits(f"{name} compiled", 60):
            grown = {k: v for k, v in changes(task, None) if k != "dbb"}
            measured(report, f"{name} compiled", replace(task, compile="model"), grown, rounds)


def forms() -> tuple[str, ...]:
    """Return the library's forms of blocks."""
    return get_args(get_type_hints(dyrep.expand)["form"])


def changes(task: Task, reference: Path | None) -> Iterator[tuple[str, Callable | None]]:
    """Yield the changes to the plain network, by the name of the result."""
    yield "plain", None
    example = torch.zeros(1, 3, task.size, task.size)
    yield "dbb", partial(dyrep.expand, absorb=example)
    for form in forms():
        yield f"grown, {form}", partial(fully_grown, form=form)
    if reference:
        yield "published", partial(as_published, reference=reference)


def fully_grown(model: nn.Module, form: str) -> None:
    """Give every convolution all branches of the published code that it can take."""
    dyrep.expand(model, branches=PUBLISHED_BRANCHES, form=form)


def as_published(model: nn.Module, reference: Path) -> None:
    """Give every convolution the block of the published code, with all its branches."""
    from benchmarks import train_step

    published = train_step.load_reference(reference)
    fully_grown(model, "batchnorm")
    for path, block in outer_blocks(model).items():
        surgery.replace(model, path, train_step.published_block(block, published))


def measured(
    report: Report, key: str, task: Task, changed: dict[str, Callable | None], rounds: int
) -> None:
    """Measure one network with all kinds of branches and add the result."""
    steps = STEPS[key.split()[0]]
    makers = {
        name: partial(Bare, replace(task, channels_last=True, changed=change))
        for name, change in changed.items()
    }
    loops, facts = measure.built(makers, partial(report.skip_of, key), steps)
    for name, loop in loops.items():
        facts[name]["parameters"] = sum(p.numel() for p in loop.model.parameters())
    times = measure.in_turn(loops, steps, rounds)
    report.add(key, {
        "task": {"model": task.model, "size": task.size, "batch": task.batch,
                 "precision": task.precision, "compile": task.compile, "rounds": rounds},
        "images_per_s": measure.rates(times, task.batch),
        "faster": measure.ratios(times, [(name, "plain") for name in loops if name != "plain"]
                                 + [(f"grown, {form}", "published") for form in forms()]),
        "loops": facts,
    })  # fmt: skip
    del loops
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
