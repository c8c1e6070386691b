"""Explain a loss that is not finite, by repeating the steps since the newest checkpoint."""

from __future__ import annotations

from pipeline.contract.stage import Context
from pipeline.contract.world import World
from pipeline.training import nonfinite
from pipeline.training.loop import Training
from pipeline.training.nonfinite import Diverged


def explain(context: Context, world: World, step: int) -> Diverged:
    """Resume, repeat the steps up to `step` while watching every layer, and name the cause.

    The checkpoint is from the epoch of that step or from the end of the epoch before.
    """
    training = Training(context, world)
    state = training.state
    state.learner.train()
    with state.learner.compiler.aside():
        return nonfinite.explain(
            state.learner.model,
            map(state.mixed, state.loader),
            state.train_on,
            world,
            training.check_stop,
            range(state.step + 1, step + 1),
        )
