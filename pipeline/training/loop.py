"""Run the training loop: train an epoch, save, validate, adjust the structure, save.

The loop can stop between any two steps. An epoch is saved after its last step and before its
validation: the checkpoint is written while the processes validate, and a training that resumes from
it validates again. If statistics are recalibrated, the epoch is saved after the recalibration.
"""

from __future__ import annotations

from torch import nn

from pipeline.contract.stage import Context
from pipeline.contract.world import World
from pipeline.data.loaders.base import Batch
from pipeline.display.errors import Interrupted
from pipeline.training import adjustment, evaluation, recalibration, setup
from pipeline.training.agreement import Agreement
from pipeline.training.announce import Announcer
from pipeline.training.handing_on import hand_on, network_of
from pipeline.training.images import Images
from pipeline.training.profile import Profile
from pipeline.training.saving import Saving

GONE = 20.0  # after so many seconds without a batch, none is expected any more


class Training:
    """One training, in one of its processes; begins, or resumes from its newest checkpoint."""

    def __init__(self, context: Context, world: World) -> None:
        self.context, self.world, self.recipe = context, world, context.config.train
        folder = context.parents["prep"] / "data"
        self.images = Images(context.config, folder, world, self._while_waiting)
        self.announcer = Announcer(context, world)
        self.saving = Saving(context, world)
        self.state = setup.set_up(context, world, self.images, self.saving, self.announcer)
        self.profile = Profile(self.recipe.profile if world.main else None, context.dir)
        self.agreement = Agreement(world, self.saving.saver, context.stop_requested)

    def run(self) -> dict[str, float]:
        """Train to the last epoch, or until the budget is spent; return the headline numbers.

        Raises:
            UserError: the budget is too small for a single step.
            Interrupted: a stop was requested; a checkpoint of the last step is on disk.
            NotFinite: the loss is not finite; no such state was saved.
        """
        self.check_stop()
        setup.announce(self.state, self.announcer)
        try:
            for _ in self.state.epochs():
                self._make_steps()
                step_seconds = self._evaluate()
                if adjustment.due(self.state):
                    self.adjust(step_seconds)
                    self.save()
                self.check_stop()
            return self._finish()
        finally:
            self.profile.end()
            self.world.saving()
            self.saving.saver.wait()
            self._report("saved")

    def _make_steps(self) -> None:
        """Train to the end of the present epoch, recalibrate if that is due, and save."""
        trains = self.state.steps_to_go > 0
        if trains:
            self.train_epoch()
        adjustment.end_if_too_dear(self.state, self.announcer)
        recalibrates = recalibration.due(self.state, self.recipe)
        if recalibrates:
            self._report("recalibrating")
            recalibration.recalibrate(
                self.state, self.recipe, self.world, self.images, self._save_and_check_stop
            )
        if trains or recalibrates:
            self.save()

    def train_epoch(self) -> None:
        """Make the remaining steps of the present epoch, and save when a save is due."""
        for batch in self.state.batches():
            self._step(batch)
            self._report()
            if self.state.steps_to_go:
                self._save_or_leave()
        self.state.learner.share_statistics()

    def _step(self, batch: Batch) -> None:
        state = self.state
        lr = state.learner.lr
        loss = state.train_on(batch)
        state.step += 1
        state.history.step(state.step, state.epoch + 1, loss, lr)
        self.profile.step()
        if seconds := state.learner.compiler.seconds():
            state.cost.compiled(seconds)
            self.announcer.say(state.learner.compiler.log_line(seconds))
        if state.step == state.resumed_at + 1:
            self.announcer.first_step(state.step, self.images.chosen(state.loader))

    def _save_or_leave(self) -> None:
        stop, due = self.agreement.after(self.state.step)
        if stop or due:
            self.save()
        if stop:
            raise Interrupted

    def _save_and_check_stop(self) -> None:
        try:
            self.check_stop()
        except Interrupted:
            self.save()
            raise

    def _evaluate(self) -> float:
        self._report("validating")
        step_seconds = evaluation.evaluate(
            self.state, self.recipe, self.images, self.announcer, self.check_stop
        )
        self.saving.mark_best(self.state)
        evaluation.announce(self.state, self.announcer)
        return step_seconds

    def adjust(self, step_seconds: float) -> None:
        """Grow and cut branches; `step_seconds` is the duration of a step before the change."""
        self._report("adjusting")
        adjustment.adjust(
            self.state, self.world, self.images, self.announcer, self.check_stop, step_seconds
        )

    def save(self) -> None:
        """Save a checkpoint of the present state; see `Saving.save`."""
        self.saving.save(self.state)

    def _finish(self) -> dict[str, float]:
        growth = self.state.growth
        growth.write_waiting(None)
        self.profile.end(complete=True)
        if self.world.main:
            self.context.check_owner()
            hand_on(self._shipped(), self.context.dir, growth.left)
        return evaluation.headline(self.state, self.recipe)

    def _shipped(self) -> nn.Module:
        """Return the network that `train.ship` selects, with its branches."""
        if self.recipe.ship == "last":
            return self.state.learner.shipped
        best = self.saving.load_best(self.state.standing.best_epoch)
        return network_of(self.context.config, self.images.classes, best)

    def check_stop(self) -> None:
        """Raise `Interrupted` if any process was asked to stop; collective."""
        if self.world.any(self.context.stop_requested())[0]:
            raise Interrupted

    def _while_waiting(self, seconds: float) -> None:
        """Raise `Interrupted` if a stop was requested and no batch arrives.

        Several processes normally stop together, between two steps. So a process that waits for a
        batch stops alone only when no batch is expected any more.
        """
        if not self.context.stop_requested() or (not self.world.alone and seconds < GONE):
            return
        self.saving.saver.wait()
        if self.world.alone and self.state.step > self.context.saved:
            self.save()
        raise Interrupted

    def _report(self, doing: str = "") -> None:
        state = self.state
        to_come = state.growth.to_come(state.plain_epochs, state.pace.epochs)
        self.announcer.progress(state.step, state.metrics, doing, to_come)
