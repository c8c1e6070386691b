"""Set up a training: the device, the random numbers, and the state it begins or resumes with."""

from __future__ import annotations

from pipeline.contract.stage import Context
from pipeline.contract.world import World
from pipeline.display.errors import UserError
from pipeline.training import adjustment, device, generators, growable
from pipeline.training.images import Images
from pipeline.training.saving import Saving
from pipeline.training.state import State
from pipeline.training.telling import Telling


def set_up(
    context: Context, world: World, images: Images, saving: Saving, telling: Telling
) -> State:
    """Return the state of a training, ready for its next step; collective.

    Raises:
        UserError: the checkpoints cannot be used, or the method cannot change this network.
    """
    config = context.config
    if lacking := device.settle(world.device, config.train):
        telling.say(lacking)
    generators.seed(config.seed)
    telling.mark()
    saved = saving.load()
    state = State(config, world, images, context.dir, saved)
    telling.pace = state.pace
    telling.mark()
    if not saved:
        adjustment.price(state, world, telling)
    state.learner.wrap()
    return state


def announce(state: State, telling: Telling) -> None:
    """Print what the training starts from and what it leaves out, before its first step.

    Raises:
        UserError: the budget is too small for a single step.
    """
    if not (state.step or state.unfinished):
        raise UserError(
            f"train.budget.plain_epochs={state.pace.epochs:g} is spent before the first step, "
            "by measuring what one costs; use more"
        )
    for line in (*state.learner.told, *growable.reasons(state.growth.left)):
        telling.say(line)
    if lacking := state.learner.compiler.lacking():
        telling.say(lacking)
