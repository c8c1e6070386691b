"""Set up a training: the device, the random numbers, and the state it begins or resumes with."""

from __future__ import annotations

from pipeline.contract.stage import Context
from pipeline.contract.world import World
from pipeline.display.errors import UserError
from pipeline.training import adjustment, device, generators, growable
from pipeline.training.announce import Announcer
from pipeline.training.images import Images
from pipeline.training.saving import Saving
from pipeline.training.state import State


def set_up(
    context: Context, world: World, images: Images, saving: Saving, announcer: Announcer
) -> State:
    """Return the state of a training, ready for its next step; collective.

    Raises:
        UserError: the checkpoints cannot be used, or the method cannot change this network.
    """
    config = context.config
    if lacking := device.configure(world.device, config.train):
        announcer.say(lacking)
    generators.seed(config.seed)
    announcer.mark()
    saved = saving.load()
    state = State(config, world, images, context.dir, saved)
    announcer.pace = state.pace
    announcer.mark()
    if not saved:
        adjustment.price(state, world, announcer)
    state.learner.wrap()
    return state


def announce(state: State, announcer: Announcer) -> None:
    """Print what the training starts from and what it leaves out, before its first step.

    Raises:
        UserError: the budget is too small for a single step.
    """
    if not (state.step or state.unfinished):
        raise UserError(
            f"train.budget.plain_epochs={state.pace.epochs:g} is spent before the first step, "
            "by measuring what one costs; use more"
        )
    for line in (*state.learner.log_lines, *growable.reasons(state.growth.left)):
        announcer.say(line)
    if lacking := state.learner.compiler.lacking():
        announcer.say(lacking)
