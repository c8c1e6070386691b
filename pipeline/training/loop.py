"""The training loop, top to bottom: step, save, validate, grow; stop and resume in between.

Everything that must survive a restart is in `Training.state`, and nowhere else. An epoch is saved
when its last step is done, before it is validated: while the processes validate, the checkpoint is
written, and whoever resumes from it validates again.
"""

from __future__ import annotations

import math
import os
import time
from typing import Any

import torch
from torch import Tensor

import dyrep
from pipeline import attempt, disk, rundir
from pipeline.data import loader
from pipeline.data.loader import Batch, Loader, Part
from pipeline.data.shards import Manifest
from pipeline.errors import Interrupted
from pipeline.stage import Context
from pipeline.training import checkpoint, generators, growable, nonfinite, resume
from pipeline.training.checkpoint import Facts
from pipeline.training.cost import Cost
from pipeline.training.distributed import World
from pipeline.training.growth import Growth
from pipeline.training.history import History, Rows
from pipeline.training.learner import Learner
from pipeline.training.mixing import Mixing
from pipeline.training.nonfinite import Diverged
from pipeline.training.saver import Saver
from pipeline.training.validation import validate

MUCH_WAITING = 0.1  # share of an epoch
GONE = 20.0  # seconds after which a batch is not to be expected any more


class Training:
    """One training in one of its processes, begun anew or where its newest checkpoint left off."""

    def __init__(self, context: Context, world: World) -> None:
        self.context, self.world, self.config = context, world, context.config
        self.recipe = self.config.train
        self.folder = context.parents["prep"] / "data"
        if self.recipe.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it
            torch.use_deterministic_algorithms(True)
        generators.seed(self.config.seed)
        self.saver = Saver(
            context.dir / "checkpoints", self.config.checkpoint, context.check_owner, self._saved
        )
        self.identity = resume.identity(context)
        self.imported = time.time()
        found = resume.find(context, world, self.identity)
        saved = checkpoint.load(found) if found else {}
        self._build(saved)
        self.step: int = saved.get("step", 0)
        self.epoch: int = saved.get("epoch", 0)  # epochs finished, with validation and growth
        self.metrics: dict[str, float] = saved.get("metrics", {})
        if saved:
            self._restore(saved)
        self.saver.begin(self.step, found.name if found else None)
        self.loaded = time.time()
        context.saved = self.step
        if not saved:
            self._price()
        self.learner.wrap()

    def run(self) -> dict[str, float]:
        """Train to the last epoch; return the headline numbers.

        Raises:
            Interrupted: a stop was asked for; a checkpoint of the last step is on disk.
            NotFinite: the loss is not finite; no such state was saved.
        """
        self._leave_if_asked()
        for line in growable.told(self.growth.left):
            self._say(line)
        try:
            while self.epoch < self.recipe.epochs:
                if self.steps_to_go:
                    self._train_epoch()
                self._end_epoch()
            return self._finish()
        finally:
            self.world.saving()
            self.saver.wait()
            self._report("saved")

    @property
    def steps_to_go(self) -> int:
        """Steps that are missing in the present epoch."""
        return (self.epoch + 1) * self.steps_per_epoch - self.step

    # -- an epoch -----------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        self.learner.train()
        self.history.start_clock()
        for batch in self.loader:
            self._step(self.mixing(batch, self.epoch), self.history.since_mark())
            self._report()
            if self.steps_to_go:
                stop, due = self.world.any(
                    self.context.stop_requested(), self.world.main and self.saver.due(self.step)
                )
                if stop or due:
                    self._save()
                if stop:
                    raise Interrupted
        self.learner.share_statistics()
        self._save()

    def _step(self, batch: Batch, data_seconds: float) -> None:
        lr = self.learner.lr
        loss = self.learner.update(batch, self.growth.accumulate)
        self.step += 1
        self.cost.count()
        self.history.step(self.step, self.epoch + 1, loss, lr, data_seconds)
        if self.step == self.resumed_at + 1:
            self._tell_start_up()

    def _end_epoch(self) -> None:
        """Validate, record, and adjust the structure when it is time.

        The last epoch never adjusts: nothing would train what it grew.
        """
        if told := nonfinite.judge(*self.history.skipped_now(), self.epoch + 1):
            self._say(told)
        self._report("validating")
        learner, images = self.learner, self._loader("val", evaluate=True)
        self.metrics = validate(
            learner.shipped, images, self.world, learner.autocast(), self._leave_if_asked
        )
        step_seconds = self.history.epoch(
            self.step,
            self.epoch + 1,
            self.metrics,
            self.recipe.batch_size,
            {**learner.facts(), **self.cost.facts()},
        )
        self.growth.settle(step_seconds)
        self.epoch += 1
        self._mark_best()
        lost = "" if math.isfinite(self.metrics["val_loss"]) else ", validation loss not finite"
        self._say(f"epoch {self.epoch}: top-1 {self.metrics['top1']:.2f} %{lost}")
        self._tell_waiting()
        if self.epoch < self.recipe.epochs and self.growth.due(self.epoch):
            self._adjust(step_seconds)
            self._save()
        self._leave_if_asked()

    def _adjust(self, step_seconds: float) -> None:
        self._report("adjusting")
        self.learner.unwrap()
        batches = self._calibration_batches()
        for line in self.growth.adjust(batches, self.epoch, self.step, step_seconds):
            self._say(line)
        self._price()
        self.learner.wrap()

    def _price(self) -> None:
        """Measure what a step costs from here on, in steps of the plain network."""
        size = self.config.data.image_size
        images = self.recipe.batch_size // self.world.world_size
        generator = torch.Generator(self.world.device).manual_seed(0)
        shape, device = (images, 3, size, size), self.world.device
        batch = torch.randn(shape, generator=generator, device=device)
        to_come = self.recipe.epochs * self.steps_per_epoch - self.step
        self.cost.per_step = self.world.from_main(
            lambda: self.cost.measure(self.learner.model, batch, self.learner.autocast(), to_come)
        )
        self.growth.price(self.cost.per_step)

    def _calibration_batches(self) -> list[Tensor]:
        """Return training images from a loader of their own: the training order is untouched."""
        assert self.config.method.kind == "dyrep"
        images = self._loader("train", seed=self._seed() + self.epoch)
        count = self.config.method.calibration_batches
        batches = []
        for _, batch in zip(range(count), images, strict=False):
            self._leave_if_asked()
            batches.append(batch.images)
        return batches

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
        self.loader = self._loader(
            "train",
            seed=self._seed() + (0 if own or not saved else saved["step"]),
            state=own["loader"] if own else None,
        )
        self.steps_per_epoch = len(self.loader)
        classes = len(Manifest.load(self.folder).classes)
        self.mixing = Mixing(self.recipe, classes, self.config.data.image_size)
        self.learner = Learner(self.config, self.world, classes, self.steps_per_epoch, saved)
        generators.seed(self._seed() + self.world.rank)  # equal weights, then own dropout
        self.cost = Cost(self.config, classes, saved.get("cost", {}) if saved else None)
        rows = saved.get("growth", {"rows": 0})["rows"]
        self.growth = Growth(
            self.learner.model,
            self.learner.optimizer,
            self.learner.ema,
            self.config.method,
            self.config.seed,
            Rows(self.context.dir / rundir.GROWTH, rows, self.world.main),
            self.learner.left,
        )
        self.history = History(
            self.context.dir / rundir.HISTORY, self.world, self.recipe, saved.get("history", {})
        )
        self.resumed_at: int = saved.get("step", 0)
        self._told_waiting = False

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
        shipped = self.learner.shipped
        if self.world.main:
            from safetensors.torch import save_file

            self.context.check_owner()
            structure = {**dyrep.structure(shipped), "left": self.growth.left}
            rundir.write_json(self.context.dir / "structure.json", structure)
            with disk.replacing(self.context.dir / "model.safetensors") as temporary:
                tensors = {k: v.cpu().contiguous() for k, v in shipped.state_dict().items()}
                save_file(tensors, temporary)
        return {
            "top1": self.metrics["top1"],
            "top5": self.metrics["top5"],
            "loss": self.metrics["val_loss"],
            "epochs": self.epoch,
            "steps": self.step,
            **({"skipped": self.history.skipped} if self.history.skipped else {}),
            **self.growth.totals,
            "left": len(self.growth.left),
            **self.cost.facts(),
        }

    # -- small parts --------------------------------------------------------------------------

    def explain(self, step: int) -> Diverged:
        """Walk from the checkpoint into the step whose loss is not finite and say where it began.

        The checkpoint is from the epoch of that step or from the end of the one before.
        """
        self.learner.train()
        model = self.learner.model
        last = f"the last checkpoint is from step {self.step}"
        with nonfinite.watching(model) as layers:
            for unmixed in self.loader:
                self._leave_if_asked()
                batch = self.mixing(unmixed, self.epoch)
                loss = self.learner.update(batch, self.growth.accumulate)
                self.step += 1
                seen = None
                if not loss.isfinite() or layers:
                    seen = nonfinite.source(model, layers, batch.images)
                where = next(filter(None, self.world.gather(seen)), None)
                if where:
                    return Diverged(
                        f"step {self.step}: the loss is not finite; {where}; {last}. Lower "
                        "train.lr, or leave such steps out with train.nonfinite=skip"
                    )
                if self.step == step:
                    break
        return Diverged(
            f"step {step}: the loss was not finite, and was when the step was repeated; {last}. "
            "train.deterministic=true makes it repeatable"
        )

    def _tell_start_up(self) -> None:
        """Say how long it took from the start of the attempt to its first step, and on what."""
        if self.world.main:
            kind, why = loader.choose(self.config.data.loader, self._part("train"))
            self._say(f"data.loader: {kind.kind} ({why})")
            begun = attempt.last(self.context.dir)["time"]
            marks = {
                "processes": self.context.started - begun,
                "imports": self.imported - self.context.started,
                "checkpoint": self.loaded - self.imported,
                "first_step": time.time() - self.loaded,
            }
            seconds = {name: round(value, 2) for name, value in marks.items()}
            self.context.event("first_step", step=self.step, seconds=seconds)
            parts = ", ".join(f"{name} {value}" for name, value in seconds.items())
            self._say(f"first step after {sum(marks.values()):.1f} s ({parts})")

    def _tell_waiting(self) -> None:
        """Say once if the images are the bottleneck."""
        share = self.history.waiting
        if share > MUCH_WAITING and not self._told_waiting:
            self._told_waiting = True
            self._say(
                f"waiting for data {100 * share:.0f} % of the time: give it more cores "
                "(cluster.cpus_per_process), smaller images (prep.shrink), or another data.loader"
            )

    def _seed(self) -> int:
        """Return the seed of this training's loaders, apart from those of its neighbours."""
        return self.config.seed * 100_003 % 2**62  # what is added stays within 64 bits

    def _loader(
        self, split: str, seed: int = 0, state: Tensor | None = None, evaluate: bool = False
    ) -> Loader:
        return loader.make(self.config.data.loader, self._part(split, seed, evaluate), state)

    def _part(self, split: str, seed: int = 0, evaluate: bool = False) -> Part:
        return Part(
            folder=self.folder,
            split=split,
            batch_size=self.recipe.batch_size // self.world.world_size,
            image_size=self.config.data.image_size,
            resize=self.config.data.short_side,
            augment=None if evaluate else self.recipe.augment,
            rank=self.world.rank,
            world_size=self.world.world_size,
            device=self.world.device,
            seed=seed,
            waiting=self._while_waiting,
        )

    def _while_waiting(self, seconds: float) -> None:
        """Leave, if a stop was asked for and no batch comes.

        Several processes leave together between two steps, so one that waits leaves alone only
        when no batch is to be expected any more.
        """
        if not self.context.stop_requested() or (self.world.world_size > 1 and seconds < GONE):
            return
        self.saver.wait()
        if self.world.world_size == 1 and self.step > self.context.saved:
            self._save()
        raise Interrupted

    def _report(self, doing: str = "") -> None:
        if self.world.main:
            accuracy = f", top-1 {self.metrics['top1']:.1f} %" if self.metrics else ""
            epoch = -(-self.step // self.steps_per_epoch) or 1  # of the last step that was made
            text = f"epoch {epoch}/{self.recipe.epochs}{accuracy}"
            text += f", {doing}" if doing else ""
            self.context.progress(self.step, self.recipe.epochs * self.steps_per_epoch, text)

    def _say(self, text: str) -> None:
        if self.world.main:
            print(text, flush=True)
