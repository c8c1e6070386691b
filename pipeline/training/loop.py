"""The training loop, top to bottom: step, validate, grow, save; stop and resume in between.

`Training` holds everything that must survive a restart, and `Training.state` is the one list of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import dyrep
from pipeline import models, rundir
from pipeline.data.dali import Batch, DaliLoader
from pipeline.data.shards import Manifest
from pipeline.errors import Interrupted, UserError
from pipeline.stage import Context
from pipeline.training import checkpoint, optim
from pipeline.training.distributed import World
from pipeline.training.growth import Growth, prepare
from pipeline.training.history import History, Rows
from pipeline.training.validation import validate


class Training:
    """One training in one of its processes, begun anew or where its newest checkpoint left off."""

    def __init__(self, context: Context, world: World) -> None:
        self.context, self.world, self.config = context, world, context.config
        self.recipe = self.config.train
        self.checkpoints = context.dir / "checkpoints"
        self.folder = context.parents["prep"] / "data"
        torch.use_deterministic_algorithms(self.recipe.deterministic)
        torch.manual_seed(self.config.seed)
        saved = self._newest_checkpoint()
        self._build(saved)
        if saved:
            self._restore(saved)
        self.step: int = saved.get("step", 0)
        self.epoch: int = saved.get("epoch", 0)  # epochs finished
        self.metrics: dict[str, float] = saved.get("metrics", {})
        self._wrap()

    def run(self) -> dict[str, float]:
        """Train to the last epoch; return the headline numbers.

        Raises:
            Interrupted: a stop was asked for; a checkpoint of this very step is on disk.
        """
        while self.epoch < self.recipe.epochs:
            self._train_epoch()
            self._end_epoch()
            self._save()
            self._leave_if_asked()
        return self._finish()

    # -- an epoch -----------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        self.ddp.train()
        self.history.start_clock()
        for batch in self.loader:
            self._step(batch, self.history.since_mark())
            self._report()
            if self.step % self.steps_per_epoch:  # the end of an epoch saves anyway
                self._leave_if_asked(save=True)

    def _step(self, batch: Batch, data_seconds: float) -> None:
        with self._autocast():
            scores = self.ddp(batch.images)
            loss = cross_entropy(scores, batch.labels, label_smoothing=self.recipe.label_smoothing)
        loss.backward()
        self.growth.accumulate()
        lr = float(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.step += 1
        self.history.step(self.step, self.epoch + 1, loss.detach(), lr, data_seconds)

    def _end_epoch(self) -> None:
        """Validate, record, and adjust the structure when it is time.

        The last epoch never adjusts: nothing would train what it grew.
        """
        self.epoch += 1
        loader = self._loader("val", evaluate=True)
        self.metrics = validate(self.model, loader, self.world, self._autocast())
        parameters = sum(p.numel() for p in self.model.parameters())
        step_seconds = self.history.epoch(
            self.step, self.epoch, self.metrics, self.recipe.batch_size, parameters
        )
        self.growth.settle(step_seconds)
        self._say(f"epoch {self.epoch}: top-1 {self.metrics['top1']:.2f} %")
        if self.epoch < self.recipe.epochs and self.growth.due(self.epoch):
            self._adjust(step_seconds)

    def _adjust(self, step_seconds: float) -> None:
        del self.ddp  # frees the buckets of the old parameters
        batches = self._calibration_batches()
        for line in self.growth.adjust(batches, self.epoch, self.step, step_seconds):
            self._say(line)
        self._wrap()

    def _calibration_batches(self) -> list[Tensor]:
        """Return training images from a loader of their own: the training order is untouched."""
        assert self.config.method.kind == "dyrep"
        loader = self._loader("train", seed=self._seed() + self.epoch)
        count = self.config.method.calibration_batches
        return [batch.images for _, batch in zip(range(count), loader, strict=False)]

    # -- saving and resuming ------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return everything that must survive a restart; collective, the same on every process."""
        rank_state = {"loader": self.loader.state(), "rng": torch.get_rng_state()}
        return {
            "step": self.step,
            "epoch": self.epoch,
            "metrics": self.metrics,
            "structure": dyrep.structure(self.model),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "growth": self.growth.state(),
            "history": self.history.state(),
            "ranks": self.world.gather(rank_state),
        }

    def _save(self) -> None:
        self.history.flush()
        state = self.state()
        if self.world.main:
            path = checkpoint.save(self.checkpoints, self.step, state, self.recipe.keep_checkpoints)
            self.context.event("saved", step=self.step, epoch=self.epoch, file=path.name)

    def _newest_checkpoint(self) -> dict[str, Any]:
        saved, rejected = checkpoint.load_newest(self.checkpoints)
        for reason in rejected:
            self._say(f"checkpoint passed over: {reason}")
        if saved is None:
            return {}
        if len(saved["ranks"]) != self.world.world_size:
            raise UserError(
                f"this training was begun with {len(saved['ranks'])} processes and cannot continue "
                f"with {self.world.world_size}; set cluster.processes_per_node to match"
            )
        if self.world.main:
            self.context.event("resumed", step=saved["step"], epoch=saved["epoch"])
        return saved

    def _build(self, saved: dict[str, Any]) -> None:
        """Build network, loader, optimizer and records; with the structure of a checkpoint."""
        self.model = models.build(self.config.model, len(Manifest.load(self.folder).classes))
        if saved:
            dyrep.apply_structure(self.model, saved["structure"])
        else:
            size = self.config.data.image_size
            prepare(self.model, self.config.method, self.config.seed, size)
        self.model.to(self.world.device)
        state = saved["ranks"][self.world.rank]["loader"] if saved else None
        self.loader = self._loader("train", seed=self._seed(), state=state)
        self.steps_per_epoch = len(self.loader)
        self.optimizer = optim.build(self.model, self.recipe)
        self.schedule = optim.schedule(self.optimizer, self.recipe, self.steps_per_epoch)
        rows = saved.get("growth", {"rows": 0})["rows"]
        growth_rows = Rows(self.context.dir / rundir.GROWTH, rows, self.world)
        self.growth = Growth(
            self.model, self.optimizer, self.config.method, self.config.seed, growth_rows
        )
        history = self.context.dir / rundir.HISTORY
        self.history = History(history, self.world, saved.get("history", {}))

    def _restore(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"], strict=True)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.growth.load_state(saved["growth"])
        torch.set_rng_state(saved["ranks"][self.world.rank]["rng"])

    def _leave_if_asked(self, save: bool = False) -> None:
        if self.world.any(self.context.stop_requested()):
            if save:
                self._save()
            raise Interrupted

    def _finish(self) -> dict[str, float]:
        if self.world.main:
            from safetensors.torch import save_file

            rundir.write_json(self.context.dir / "structure.json", dyrep.structure(self.model))
            with rundir.replacing(self.context.dir / "model.safetensors") as temporary:
                tensors = {k: v.cpu().contiguous() for k, v in self.model.state_dict().items()}
                save_file(tensors, temporary)
        return {
            "top1": self.metrics["top1"],
            "top5": self.metrics["top5"],
            "loss": self.metrics["val_loss"],
            "epochs": self.epoch,
            "steps": self.step,
            **self.growth.totals,
        }

    # -- small parts --------------------------------------------------------------------------

    def _wrap(self) -> None:
        ids = [self.world.device.index] if self.world.device.type == "cuda" else None
        self.ddp = DistributedDataParallel(self.model, device_ids=ids)

    def _seed(self) -> int:
        """Return the seed of this training's loaders, apart from those of its neighbours."""
        return self.config.seed * 100_003

    def _loader(
        self, split: str, seed: int = 0, state: Tensor | None = None, evaluate: bool = False
    ) -> DaliLoader:
        return DaliLoader(
            self.folder,
            split,
            batch_size=self.recipe.batch_size // self.world.world_size,
            image_size=self.config.data.image_size,
            augment=None if evaluate else self.recipe.augment,
            rank=self.world.rank,
            world_size=self.world.world_size,
            device=self.world.device,
            seed=seed,
            state=state,
        )

    def _autocast(self) -> torch.autocast:
        enabled = self.recipe.precision == "bfloat16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=enabled)

    def _report(self) -> None:
        if self.world.main:
            accuracy = f", top-1 {self.metrics['top1']:.1f} %" if self.metrics else ""
            text = f"epoch {self.epoch + 1}/{self.recipe.epochs}{accuracy}"
            self.context.progress(self.step, self.recipe.epochs * self.steps_per_epoch, text)

    def _say(self, text: str) -> None:
        if self.world.main:
            print(text, flush=True)
