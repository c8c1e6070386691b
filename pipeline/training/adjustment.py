"""Change the structure of the network between two epochs, and measure what a step costs then."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.contract.world import World
from pipeline.training.images import Images
from pipeline.training.state import State
from pipeline.training.telling import Telling


def due(state: State) -> bool:
    """Return whether to adjust now, at the end of an epoch.

    The last epoch never adjusts: no step would train the new branches.
    """
    return state.unfinished and state.growth.due(state.plain_epochs, state.pace.price)


def adjust(
    state: State,
    world: World,
    images: Images,
    telling: Telling,
    check_stop: Callable[[], None],
    step_seconds: float,
) -> None:
    """Grow and cut branches; collective.

    Args:
        state: Of the training.
        world: All processes, each of which calls this.
        images: Source of the calibration batches.
        telling: Told what changed.
        check_stop: Called before each calibration batch, may raise.
        step_seconds: Duration of a step before the change.
    """
    growth, cost = state.growth, state.cost
    with telling.adjusting():
        state.learner.unwrap()
        before = cost.adjusting
        with cost.changing(world, step_seconds):
            batches = images.calibration(growth.batches, state.epoch, check_stop)
            told = growth.adjust(batches, state.plain_epochs, state.epoch, state.step, step_seconds)
        for line in told:
            telling.say(line)
        if growth.changed:
            price(state, world, telling)
        growth.price(cost.per_step, cost.adjusting - before)
        state.learner.wrap()


def price(state: State, world: World, telling: Telling) -> None:
    """Measure what a step of the present network costs, in steps of the plain network."""
    learner = state.learner
    to_come = state.pace.steps_left(state.step)
    if told := state.cost.renew(world, learner.model, learner.autocast(), to_come):
        telling.say(told)
