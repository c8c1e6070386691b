"""Time a training step: bare torch, ours with more and more switched on, and timm's.

Each network is measured twice: executed op by op, and compiled. The networks, the images, the
optimizer and the precision are the same for all loops; `+channels_last` and `+compile` name what is
switched on. Our loop chooses the memory format by itself; `ours chooses` names it.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial

import torch

from benchmarks.gpu_campaign import measure
from benchmarks.gpu_campaign.loops import DEVICE, Bare, Ours, Task, Timm
from benchmarks.gpu_campaign.report import Report, Request

LAST = "+channels_last"
BLOCKS = "+channels_last+blocks"  # only in our loop: each block is compiled by itself
ALL = "+channels_last+compile"
LOOPS = {"bare": Bare, "ours": Ours, "timm": Timm}
PAIRS = [
    ("ours", "bare"), (f"ours{LAST}", "ours"), (f"ours{LAST}", f"bare{LAST}"),
    (f"ours{LAST}", f"timm{LAST}"), (f"ours{ALL}", f"ours{LAST}"), (f"ours{ALL}", f"bare{ALL}"),
    (f"ours{ALL}", f"timm{ALL}"), (f"ours{BLOCKS}", f"ours{ALL}"),
]  # fmt: skip
WATCHED = 50  # steps of our loop in which waits for the GPU are counted
COMPILING = 60  # seconds, at most, for compiling the three loops of a network


def tasks(small: bool) -> dict[str, Task]:
    """Return the trainings, by the names of the results."""
    if small:
        return {"vgg_small": Task("vgg_small", size=16, batch=8, classes=10)}
    return {
        "resnet50": Task("resnet50", size=224, batch=256),
        "resnet18": Task("resnet18", size=224, batch=256),
        "vgg16": Task("vgg16", size=32, batch=1024, classes=10),
    }


STEPS = {"resnet50": 4, "resnet18": 10, "vgg16": 12, "vgg_small": 2}  # steps of a turn


def run(request: Request, report: Report) -> None:
    rounds = 2 if request.small else 7
    for name, task in tasks(request.small).items():
        if report.fits(name, 20):
            measured(report, name, task, ["", LAST], rounds)
    for name, task in tasks(request.small).items():
        if report.fits(f"{name} compiled", COMPILING):
            measured(report, f"{name} compiled", task, [LAST, ALL, BLOCKS], rounds, of=name)


def measured(
    report: Report, key: str, task: Task, switches: list[str], rounds: int, of: str = ""
) -> None:
    """Measure all loops on one network and add the result."""
    steps = STEPS[of or key]
    makers = {
        f"{name}{on}": partial(made, name, task, on)
        for on in switches
        for name in LOOPS
        if not _left_out(name, on, of)
    }
    loops, facts = measure.built(makers, partial(report.skip_of, key), steps)
    for name, loop in loops.items():
        watched = WATCHED if isinstance(loop, Ours) else 5
        facts[name]["host_waits"] = measure.synchronisations(loop, watched)
    times = measure.in_turn(loops, steps, rounds)
    report.add(key, {
        "task": {"model": task.model, "size": task.size, "batch": task.batch,
                 "precision": task.precision, "steps": steps, "rounds": rounds},
        "images_per_s": measure.rates(times, task.batch),
        "faster": measure.ratios(times, PAIRS),
        "loops": facts,
        "ours chooses": [str(o.chosen_form) for o in loops.values() if isinstance(o, Ours)],
    })  # fmt: skip
    del loops
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def _left_out(name: str, on: str, of: str) -> bool:
    """Whether a loop is left out: timm's in unusual forms, and one that was measured already."""
    if name == "timm":
        return not on or on == BLOCKS or (bool(of) and on == LAST)
    return name == "bare" and (on == BLOCKS or (bool(of) and on == LAST))


def made(name: str, task: Task, on: str) -> measure.Loop:
    """Return a loop with the switches in `on`."""
    mode = {ALL: "model", BLOCKS: "blocks"}.get(on, "")
    return LOOPS[name](replace(task, channels_last="channels_last" in on, compile=mode))
