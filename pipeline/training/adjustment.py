"""Change the structure of the network between two epochs, and measure the new cost of a step."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.contract.world import World
from pipeline.training.announce import Announcer
from pipeline.training.images import Images
from pipeline.training.state import State


def due(state: State) -> bool:
    """Whether to adjust now, at the end of an epoch.

    There is no adjustment after the last epoch, because no step would train the new branches.
    """
    return state.unfinished and state.growth.due(state.plain_epochs, state.pace.price)


def end_if_too_dear(state: State, announcer: Announcer) -> None:
    """Under a budget, end growth if another adjustment would cost more than it leaves for steps."""
    growth, pace = state.growth, state.pace
    to_come = growth.to_come(state.plain_epochs, pace.epochs)
    if not (pace.budgeted and state.unfinished and to_come):
        return
    last, left = state.cost.last_adjustment, pace.steps_left(state.step) * pace.price
    expected = last or _first_cost(state)
    if expected > left - expected:
        growth.over = True
        costs = "the last adjustment cost" if last else "an adjustment costs about"
        announcer.say(
            f"no more growing or cutting: {costs} {expected:.0f} plain steps, and the budget has "
            f"{left:.0f} left"
        )


def _first_cost(state: State) -> float:
    """Estimate the cost of the first adjustment, in plain steps; 0 if it may grow nothing."""
    if not state.growth.always_grows:
        return 0.0
    price = state.pace.price
    return state.growth.calibrating * price + state.cost.measuring(price)


def adjust(
    state: State,
    world: World,
    images: Images,
    announcer: Announcer,
    check_stop: Callable[[], None],
    step_seconds: float,
) -> None:
    """Grow and cut branches; collective.

    Args:
        state: the state of the training.
        world: all processes; each of them calls this function.
        images: source of the calibration batches.
        announcer: prints the changes.
        check_stop: called before each calibration batch; may raise.
        step_seconds: duration of a step before the change.
    """
    growth, cost = state.growth, state.cost
    with announcer.adjusting():
        state.learner.unwrap()
        before = cost.adjusting
        with cost.changing(world, step_seconds):
            batches = images.calibration(growth.batches, state.epoch, check_stop)
            lines = growth.adjust(
                batches, state.plain_epochs, state.epoch, state.step, step_seconds
            )
        for line in lines:
            announcer.say(line)
        if growth.changed:
            price(state, world, announcer)
        cost.last_adjustment = cost.adjusting - before
        growth.price(cost.per_step, cost.last_adjustment)
        state.learner.wrap()


def price(state: State, world: World, announcer: Announcer) -> None:
    """Measure the cost of a step of the present network, in steps of the plain network."""
    learner = state.learner
    to_come = state.pace.steps_left(state.step)
    if line := state.cost.renew(world, learner.model, learner.autocast(), to_come):
        announcer.say(line)
