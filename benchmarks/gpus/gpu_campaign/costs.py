"""Measure the costs of our loop beside its steps: watching saliency, one growth, one checkpoint.

`watching`: before its first growth, `method=dyrep` trains the plain network and watches it. A loop
with and a loop without watching make their steps in turn. `growth`: the time from the end of a step
to the end of the next, with an adjustment in between as the loop makes it (calibration, growth,
pricing, a new optimizer state, compiling again), and for comparison the steps before and after.
`checkpoint`: the time that the loop waits, and the time until the file is sealed.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from typing import get_args

import torch

from benchmarks.gpu_campaign import measure
from benchmarks.gpu_campaign.loops import DEVICE, Ours, Task
from benchmarks.gpu_campaign.report import Report, Request
from benchmarks.gpu_campaign.steps import STEPS, tasks
from pipeline.config.model import DyRep
from pipeline.stages.timing.measure import seconds

GROWN = ("resnet18",)  # one network, because a growth of a larger one only takes longer


def run(request: Request, report: Report) -> None:
    chosen = dict(reversed(tasks(request.small).items()))
    for name, task in chosen.items():
        if report.fits(f"{name}: watching", 10):
            report.add(name, watching(name, last(task), 2 if request.small else 15))
    for name, task in [*chosen.items()][-1:]:
        if report.fits("checkpoint", 5):
            report.add("checkpoint", {"of": name, **checkpoints(last(task))})
    for settings in growing(request.small):
        for name in GROWN if not request.small else chosen:
            key = " ".join([name, "growth", *settings])
            if report.fits(key, 60 if "train.compile=model" in settings else 20):
                report.add(
                    key, growth(grows(last(chosen[name]), *settings), 1 if request.small else 2)
                )


def last(task: Task) -> Task:
    return replace(task, channels_last=True)


def grows(task: Task, *settings: str) -> Task:
    """Return the task of a network that is watched, and grows on request."""
    return replace(task, settings=("method=dyrep", *settings))


def growing(small: bool) -> list[tuple[str, ...]]:
    """Return the settings with which a growth is timed: each form, and compiled."""
    forms = [(f"method.form={name}",) for name in get_args(DyRep.model_fields["form"].annotation)]
    return forms if small else [*forms, ("train.compile=blocks",), ("train.compile=model",)]


def watching(name: str, task: Task, rounds: int) -> dict:
    """Return the additional time of a step with watching, percent."""
    loops, _ = measure.built({"plain": partial(Ours, task), "watched": partial(Ours, grows(task))},
                             _raise, STEPS[name])  # fmt: skip
    times = measure.in_turn(loops, STEPS[name], rounds)
    more = [100 * (w / p - 1) for w, p in zip(times["watched"], times["plain"], strict=True)]
    return {"watching_percent": statistics.median(more), "rounds": [round(m, 3) for m in more],
            "step_ms": 1000 * statistics.median(times["plain"])}  # fmt: skip


def _raise(name: str, reason: str) -> None:
    raise RuntimeError(f"{name}: {reason}")


def growth(task: Task, times: int) -> dict:
    """Return the costs of adjustments, milliseconds."""
    loop = Ours(task)
    loop(3)
    rows = []
    for _ in range(times):
        before = _step(loop)
        adjust = seconds(partial(loop.training.adjust, before), DEVICE)
        first = seconds(partial(loop, 1), DEVICE)
        second = seconds(partial(loop, 1), DEVICE)
        row = {"step_before": before, "adjust": adjust, "first_step": first, "second_step": second,
               "step_after": _step(loop), "last_step_to_next": adjust + first}  # fmt: skip
        rows.append({name: round(1000 * value, 2) for name, value in row.items()})
    middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {"milliseconds": middle, "each": rows}


def _step(loop: Ours) -> float:
    return statistics.median(seconds(partial(loop, 1), DEVICE) for _ in range(3))


def checkpoints(task: Task) -> dict:
    """Return the costs of saving, milliseconds."""
    loop = Ours(task)
    loop(2)
    training, held_up, sealed = loop.training, [], []
    for _ in range(5):
        loop(1)
        held_up.append(seconds(training.save, DEVICE))
        sealed.append(held_up[-1] + seconds(training.saving.saver.wait, DEVICE))
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
    size = sum(
        p.numel() * p.element_size() for p in training.state.learner.model.state_dict().values()
    )
    return {"held_up_ms": 1000 * statistics.median(held_up),
            "sealed_ms": 1000 * statistics.median(sealed), "weights_mb": size / 1e6}  # fmt: skip
