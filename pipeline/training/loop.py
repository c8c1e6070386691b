"""The training loop, top to bottom: step, save, validate, grow; stop and resume in between.

Everything that must survive a restart is in `Training.state`, and nowhere else. An epoch is saved
when its last step is done, before it is validated: while the processes validate, the checkpoint is
written, and whoever resumes from it validates again.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import Tensor

from pipeline.contract.stage import Context
from pipeline.data.loaders.base import Batch
from pipeline.errors import Interrupted, UserError
from pipeline.execution.world import World
from pipeline.records import rundir
from pipeline.training import checkpoint, device, generators, growable, nonfinite, resume
from pipeline.training.agreement import Agreement
from pipeline.training.checkpoint import Facts
from pipeline.training.cost import Cost
from pipeline.training.growth import Growth
from pipeline.training.history import History, Rows
from pipeline.training.images import Images
from pipeline.training.learner import Learner
from pipeline.training.mixing import Mixing
from pipeline.training.nonfinite import Diverged
from pipeline.training.pace import Pace
from pipeline.training.saver import Saver
from pipeline.training.telling import Telling

GONE = 20.0  # seconds after which a batch is not to be expected any more


class Training:
    """One training in one of its processes, begun anew or where its newest checkpoint left off."""

    def __init__(self, context: Context, world: World) -> None:
        self.context, self.world, self.config = context, world, context.config
        self.recipe = self.config.train
        folder = context.parents["prep"] / "data"
        self.images = Images(self.config, folder, world, self._while_waiting)
        self.telling = Telling(context, world)
        if lacking := device.settle(world.device, self.recipe):
            self.telling.say(lacking)
        generators.seed(self.config.seed)
        self.saver = Saver(
            context.dir / "checkpoints", self.config.checkpoint, context.check_owner, self._saved
        )
        self.identity = resume.identity(context)
        self.telling.mark()
        found = resume.find(context, world, self.identity)
        saved = checkpoint.load(found) if found else {}
        self._build(saved)
        self.step: int = saved.get("step", 0)
        self.epoch: int = saved.get("epoch", 0)  # epochs finished, with validation and growth
        self.metrics: dict[str, float] = saved.get("metrics", {})
        if saved:
            self._restore(saved)
        self.saver.begin(self.step, found.name if found else None)
        self.agreement = Agreement(world, self.saver, context.stop_requested)
        self.telling.mark()
        context.saved = self.step
        if not saved:
            self._price()
        self.learner.wrap()

    def run(self) -> dict[str, float]:
        """Train to the last epoch, or until its budget is spent; return the headline numbers.

        Raises:
            UserError: the budget pays no step.
            Interrupted: a stop was asked for; a checkpoint of the last step is on disk.
            NotFinite: the loss is not finite; no such state was saved.
        """
        self._leave_if_asked()
        if not (self.step or self.goes_on):
            raise UserError(
                f"train.budget.plain_epochs={self.pace.epochs:g} is spent before the first step, "
                "by measuring what one costs; use more"
            )
        for line in growable.told(self.growth.left):
            self.telling.say(line)
        if lacking := self.learner.compiler.lacking():
            self.telling.say(lacking)
        try:
            while self.goes_on:
                if self.steps_to_go:
                    self._train_epoch()
                self._end_epoch()
            return self._finish()
        finally:
            self.world.saving()
            self.saver.wait()
            self._report("saved")

    @property
    def goes_on(self) -> bool:
        """Whether an epoch is to begin or to end."""
        begun = self.step > self.epoch * self.steps_per_epoch
        return begun or self.pace.steps_left(self.step) > 0

    @property
    def steps_to_go(self) -> int:
        """Steps that are missing in the present epoch."""
        whole = (self.epoch + 1) * self.steps_per_epoch - self.step
        return min(whole, self.pace.steps_left(self.step))

    @property
    def plain_epoch(self) -> int:
        """The present epoch, from 0; under a budget, that of the plain network."""
        return int(self.pace.plain_epochs(self.step)) if self.pace.budgeted else self.epoch

    # -- an epoch -----------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        self.learner.train()
        self.history.start_clock()
        for batch in self.loader:
            self.history.batch_came()
            self._step(self.mixing(batch, self.plain_epoch))
            self._report()
            if self.steps_to_go:
                stop, due = self.agreement.after(self.step)
                if stop or due:
                    self._save()
                if stop:
                    raise Interrupted
            elif self.step % self.steps_per_epoch:
                break  # the budget is spent
        self.learner.share_statistics()
        self._save()

    def _step(self, batch: Batch) -> None:
        lr = self.learner.lr
        loss = self._update(batch)
        self.step += 1
        self.history.step(self.step, self.epoch + 1, loss, lr)
        if seconds := self.learner.compiler.seconds():
            self.cost.compiled(seconds)
            self.telling.say(self.learner.compiler.told(seconds))
        if self.step == self.resumed_at + 1:
            self.telling.first_step(self.step, self.images.chosen(self.loader))

    def _update(self, batch: Batch) -> Tensor:
        self.cost.count()  # the learning rate that follows may be a matter of what was spent
        epochs = self.pace.plain_epochs(self.step)
        return self.learner.update(batch, partial(self.growth.accumulate, epochs=epochs))

    def _end_epoch(self) -> None:
        """Validate, record, and adjust the structure when it is time.

        The last epoch never adjusts: nothing would train what it grew.
        """
        skipped, steps = self.history.skipped_now()
        overflowed = self.learner.overflows.now
        for line in nonfinite.judge(skipped, overflowed, steps, self.epoch + 1):
            self.telling.say(line)
        self._report("validating")
        self.metrics = self.learner.validate(self.images.validation(), self._leave_if_asked)
        facts = {**self.learner.facts(), **self.cost.facts()}
        facts |= {"overflowed": overflowed} if overflowed else {}
        self.learner.overflows.end_epoch()
        step_seconds = self.history.epoch(
            self.step, self.epoch + 1, self.metrics, self.recipe.batch_size, facts
        )
        self.growth.settle(step_seconds)
        self.epoch += 1
        self._mark_best()
        lost = "" if math.isfinite(self.metrics["val_loss"]) else ", validation loss not finite"
        self.telling.say(f"epoch {self.epoch}: top-1 {self.metrics['top1']:.2f} %{lost}")
        self.telling.waiting(self.history.waiting)
        if self.goes_on and self.growth.due(self.pace.plain_epochs(self.step), self.pace.price):
            with self.telling.adjusting():
                self._adjust(step_seconds)
            self._save()
        self._leave_if_asked()

    def _adjust(self, step_seconds: float) -> None:
        self._report("adjusting")
        self.learner.unwrap()
        place = self.pace.plain_epochs(self.step), self.epoch, self.step
        before = self.cost.adjusting
        with self.cost.changing(self.world, step_seconds):
            batches = self.images.calibration(self.growth.batches, self.epoch, self._leave_if_asked)
            told = self.growth.adjust(batches, *place, step_seconds)
        for line in told:
            self.telling.say(line)
        if self.growth.changed:
            self._price()
        self.growth.price(self.cost.per_step, self.cost.adjusting - before)
        self.learner.wrap()

    def _price(self) -> None:
        """Measure what a step costs from here on, in steps of the plain network."""
        model, autocast = self.learner.model, self.learner.autocast()
        to_come = self.pace.steps_left(self.step)
        if told := self.cost.renew(self.world, model, autocast, to_come):
            self.telling.say(told)

    # -- saving and resuming ------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return everything that must survive a restart; collective, the same on every process."""
        rank_state = {"loader": self.loader.state(), "generators": generators.state()}
        return {
            "step": self.step,
            "epoch": self.epoch,
            "metrics": self.metrics,
            **self.learner.state(),
            "growth": self.growth.state(),
            "cost": self.cost.state(),
            "history": self.history.state(),
            "ranks": self.world.gather(rank_state),
        }

    def _save(self) -> None:
        self.history.flush()
        state = self.state()
        if self.world.main:
            self.saver.save(self._facts(), state)

    def _facts(self) -> Facts:
        return Facts(
            step=self.step,
            epoch=self.epoch,
            attempt=self.context.attempt,
            world_size=self.world.world_size,
            boundary=self.step % self.steps_per_epoch == 0,
            history=self.history.rows,
            growth=self.growth.rows,
            identity=self.identity,
        )

    def _saved(self, facts: Facts, seconds: float) -> None:
        self.context.saved = facts.step
        self.context.event(
            "saved", step=facts.step, epoch=facts.epoch, file=facts.name, seconds=round(seconds, 3)
        )

    def _mark_best(self) -> None:
        if self.world.main:
            self.saver.wait()
            self.context.check_owner()
            assert self.saver.newest is not None  # of this epoch's last step
            folder = self.context.dir / "checkpoints"
            checkpoint.mark_best(folder, self.saver.newest, self.epoch, self.metrics["top1"])

    def _build(self, saved: dict[str, Any]) -> None:
        """Build loader, network and records; with the position and structure of a checkpoint."""
        own = resume.own_part(saved, self.world)
        self.loader = self.images.training(
            since=0 if own else saved.get("step", 0), state=own["loader"] if own else None
        )
        self.steps_per_epoch = len(self.loader)
        classes = self.images.classes
        self.cost = Cost(self.config, classes, saved.get("cost", {}) if saved else None)
        self.pace = self.telling.pace = Pace(self.recipe, self.steps_per_epoch, self.cost)
        self.mixing = Mixing(self.recipe, classes, self.config.data.image_size)
        self.learner = Learner(self.config, self.world, classes, self.pace, saved)
        generators.seed(self.images.seed + self.world.rank)  # equal weights, then own dropout
        rows = saved.get("growth", {"rows": 0})["rows"]
        self.growth = Growth(
            self.learner.model,
            self.learner.optimizer,
            self.learner.ema,
            self.config.method,
            self.config.seed,
            Rows(self.context.dir / rundir.GROWTH, rows, self.world.main),
            self.learner.left,
            self.recipe.warmup_epochs,
        )
        self.history = History(
            self.context.dir / rundir.HISTORY, self.world, self.recipe, saved.get("history", {})
        )
        self.resumed_at: int = saved.get("step", 0)

    def _restore(self, saved: dict[str, Any]) -> None:
        self.learner.load_state(saved)
        self.growth.load_state(saved["growth"])
        own = resume.own_part(saved, self.world)
        if own:
            generators.restore(own["generators"])

    def _leave_if_asked(self) -> None:
        if self.world.any(self.context.stop_requested())[0]:
            raise Interrupted

    def _finish(self) -> dict[str, float]:
        self.growth.settle(None)
        if self.world.main:
            self.context.check_owner()
            self.learner.hand_on(self.context.dir, self.growth.left)
        return {
            "top1": self.metrics["top1"],
            "top5": self.metrics["top5"],
            "loss": self.metrics["val_loss"],
            "epochs": self.epoch,
            "steps": self.step,
            **{name: count for name, count in self._lost.items() if count},
            **self.growth.totals,
            "left": len(self.growth.left),
            **self.cost.facts(),
            **({"plain_epochs": self.pace.plain_epochs(self.step)} if self.pace.budgeted else {}),
        }

    @property
    def _lost(self) -> dict[str, int]:
        """The steps that changed nothing."""
        return {"skipped": self.history.skipped, "overflowed": self.learner.overflows.total}

    def explain(self, step: int) -> Diverged:
        """Walk from the checkpoint into the step whose loss is not finite and say where it began.

        The checkpoint is from the epoch of that step or from the end of the one before.
        """
        self.learner.train()
        batches = (self.mixing(batch, self.plain_epoch) for batch in self.loader)
        with self.learner.compiler.aside():
            return nonfinite.explain(
                self.learner.model,
                batches,
                self._update,
                self.world,
                self._leave_if_asked,
                range(self.step + 1, step + 1),
            )

    def _while_waiting(self, seconds: float) -> None:
        """Leave, if a stop was asked for and no batch comes.

        Several processes leave together between two steps, so one that waits leaves alone only
        when no batch is to be expected any more.
        """
        if not self.context.stop_requested() or (not self.world.alone and seconds < GONE):
            return
        self.saver.wait()
        if self.world.alone and self.step > self.context.saved:
            self._save()
        raise Interrupted

    def _report(self, doing: str = "") -> None:
        to_come = self.growth.to_come(self.pace.plain_epochs(self.step), self.pace.epochs)
        self.telling.progress(self.step, self.metrics, doing, to_come)
