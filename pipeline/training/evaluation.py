"""Validate the network at the end of an epoch, record the epoch, and sum up the training."""

from __future__ import annotations

import math
from collections.abc import Callable

from pipeline.config.train import Train
from pipeline.training import nonfinite
from pipeline.training.announce import Announcer
from pipeline.training.images import Images
from pipeline.training.state import State


def evaluate(
    state: State,
    recipe: Train,
    images: Images,
    announcer: Announcer,
    check_stop: Callable[[], None],
) -> float:
    """Validate, write the epoch's row, and count the epoch; return the median seconds per step.

    Args:
        state: the state of the training; its `metrics` and `epoch` are updated.
        recipe: settings of the training.
        images: source of the validation images.
        announcer: prints the accuracy, and warnings about the epoch.
        check_stop: called before each batch; may raise.

    Raises:
        Diverged: most steps of the epoch were skipped.
    """
    epoch, learner = state.epoch + 1, state.learner
    skipped, steps = state.history.skipped_now()
    overflowed = learner.overflows.now
    for line in nonfinite.judge(skipped, overflowed, steps, epoch):
        announcer.say(line)
    metrics = learner.validate(images.validation(), check_stop)
    more = {**learner.numbers(), **state.cost.numbers()}
    more |= {"overflowed": overflowed} if overflowed else {}
    learner.overflows.end_epoch()
    step_seconds = state.history.epoch(state.step, epoch, metrics, recipe.batch_size, more)
    state.growth.write_waiting(step_seconds)
    state.end_epoch(metrics)
    return step_seconds


def announce(state: State, announcer: Announcer) -> None:
    """Print the validation of the epoch that has ended, and a warning if it waited for data."""
    lost = "" if math.isfinite(state.metrics["val_loss"]) else ", validation loss not finite"
    announcer.say(f"epoch {state.epoch}: top-1 {state.metrics['top1']:.2f} %{lost}")
    for line in state.standing.log_lines:
        announcer.say(line)
    announcer.waiting(state.history.waiting)


def headline(state: State, recipe: Train) -> dict[str, float]:
    """Return the metrics of a training for `result.json`; accuracy and loss of what is shipped."""
    best = state.standing.best if recipe.ship == "best" else {}
    metrics = best or state.metrics
    lost = {"skipped": state.history.skipped, "overflowed": state.learner.overflows.total}
    return {
        "top1": metrics["top1"],
        "top5": metrics["top5"],
        "val_loss": metrics["val_loss"],
        "loss": metrics["val_loss"],  # older versions named it so
        **({"shipped_epoch": best["epoch"]} if best else {}),
        "epochs": state.epoch,
        "steps": state.step,
        **{name: count for name, count in lost.items() if count},
        **state.growth.totals,
        "left": len(state.growth.left),
        **state.cost.numbers(),
        **({"plain_epochs": state.plain_epochs} if state.pace.budgeted else {}),
    }
