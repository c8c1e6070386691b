"""Make training steps; hold what they change: network, average, optimizer, schedule, scaler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import dyrep
from dyrep.structure import Structure
from pipeline.config import Config
from pipeline.config.model import Structured
from pipeline.contract.world import World
from pipeline.data.loaders.base import Batch
from pipeline.display.errors import UserError
from pipeline.networks import architectures, freezing, optimizers, pretrained, structures
from pipeline.training import device, generators, nonfinite, optim, validation
from pipeline.training.compiling import Compiler
from pipeline.training.growth import prepare
from pipeline.training.nonfinite import Diverged
from pipeline.training.pace import Pace

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class LearnerState(TypedDict):
    """A learner in a checkpoint: the structure, and the state of each part as torch returns it."""

    structure: Structure
    model: dict[str, Any]
    ema: dict[str, Any] | None
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any]
    overflows: NotRequired[dict[str, int]]  # missing in checkpoints of older versions


def _micro_batches(batch: Batch, count: int) -> Iterator[Batch]:
    """Yield a batch as micro-batches of equal size."""
    yield from map(Batch, *(tensor.chunk(count) for tensor in batch))


class Learner:
    """The network of a run in one process, with its optimizer, schedule, scaler and average.

    It starts from scratch, or with the structure of a checkpoint; `load_state` loads the values.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        classes: int,
        pace: Pace,
        saved: LearnerState | None,
    ) -> None:
        self._config, self._recipe, self._world = config, config.train, world
        self._classes = classes
        channels = config.data.channels
        self.model = architectures.build(config.model, classes, channels)
        self.left: dict[str, str] = {}  # reasons why convolutions get no branches, by path
        if saved:
            self.log_lines = freezing.freeze(self.model, config.model.freeze)
            dyrep.apply_structure(self.model, saved["structure"])
        else:
            self.log_lines = pretrained.begin(self.model, config.model, classes, channels)
            own = getattr(config.model, "own_branches", False)
            size = (channels, *[config.data.image_size] * 2)
            self.left = prepare(self.model, config.method, config.seed, size, own)
            if own and config.model.pretrained:
                pretrained.fill_branches(self.model, config.model, channels)
        if isinstance(config.method, Structured):
            self.log_lines.append(structures.log_line(self.model, config.method))
        self.layout = device.layout(world.device, self._recipe)
        self.model.to(world.device).to(memory_format=self.layout)
        self.ema = optim.averaged(self.model, self._recipe)
        head: set[str] = set()
        if self._recipe.head_lr is not None:
            head = architectures.head(config.model, classes, channels)
            optimizers.check_head(self.model, head)
        self.optimizer = optimizers.build(self.model, self._recipe, head)
        self._schedule = optim.schedule(self.optimizer, pace)
        self.overflows = optim.Overflows(self.optimizer)
        half = self._recipe.precision == "float16"
        self._scaler = GradScaler(world.device.type, enabled=half)
        self._skipped = 0  # skipped steps in a row
        self.compiler = Compiler(self._recipe, world.device)

    @property
    def shipped(self) -> nn.Module:
        """The network that is validated and written at the end: the average, if there is one."""
        return self.ema.module if self.ema else self.model

    def reschedule(self) -> None:
        """Recompute the learning rate of the next step, after its inputs have changed."""
        self._schedule.last_epoch -= 1
        self._schedule.step()

    @property
    def lr(self) -> float:
        """Learning rate of the next step; with `train.layer_decay`, of the last layer."""
        return float(self._schedule.get_last_lr()[-1])

    def autocast(self) -> torch.autocast:
        """Return the autocast context for a forward."""
        kind = PRECISIONS.get(self._recipe.precision)
        return torch.autocast(self._world.device.type, kind, enabled=kind is not None)

    def update(self, batch: Batch, accumulate: Callable[[GradScaler | None], None]) -> Tensor:
        """Train on a batch; return its loss, on the device.

        `accumulate` is called after backward and before the optimizer, with the scaler if the
        gradients are scaled.

        Raises:
            Diverged: too many steps in a row were skipped, with `train.nonfinite=skip`.
        """
        skipping = self._recipe.nonfinite == "skip"
        statistics = [(b, b.clone()) for b in self.model.buffers()] if skipping else []
        with self.compiler.explaining():
            loss, skip = self._gradients(batch, skipping)
            if skipping and not skip:
                skip = not nonfinite.finite_gradients(self.model, self._scaler)
        if skip:
            loss = loss * math.nan  # recorded as no loss, even if only the gradients were bad
            for buffer, before in statistics:
                buffer.copy_(before)
        else:
            self._step(accumulate)
        self._count_skipped(skip)
        self.optimizer.zero_grad()
        self._schedule.step()
        return loss

    def _gradients(self, batch: Batch, skipping: bool) -> tuple[Tensor, bool]:
        """Compute the gradients of a batch; return its loss, on the device, and whether to skip it.

        The batch is split into `train.accumulate` micro-batches. The processes average their
        gradients during the last one. With `skipping`, return at the first loss that is not finite
        in any process.
        """
        count = self._recipe.accumulate
        losses = []
        for number, micro_batch in enumerate(_micro_batches(batch, count), start=1):
            with self._apart() if number < count else nullcontext():
                loss = self._loss(micro_batch) / count
                losses.append(loss.detach())
                if skipping and self._world.any(not loss.isfinite())[0]:
                    return losses[-1], True
                self._scaler.scale(loss).backward()
        return torch.stack(losses).sum(), False

    def _apart(self) -> AbstractContextManager[None]:
        """Return a context in which DDP does not average gradients between processes."""
        if isinstance(self._wrapped, DistributedDataParallel):
            return self._wrapped.no_sync()
        return nullcontext()

    def _step(self, accumulate: Callable[[GradScaler | None], None]) -> None:
        if self._recipe.clip_grad is None:
            accumulate(self._scaler)
        else:
            self._scaler.unscale_(self.optimizer)
            accumulate(None)  # before clipping, whose factor differs from step to step
            nn.utils.clip_grad_norm_(self.model.parameters(), self._recipe.clip_grad)
        self.overflows.ask()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self.ema:
            self.ema.update_parameters(self.model)

    def _loss(self, batch: Batch) -> Tensor:
        images = batch.images.contiguous(memory_format=self.layout)
        with self.autocast():
            scores = self._wrapped(images)
            if scores.shape != (len(images), self._classes):  # possible with a user's network
                raise UserError(
                    f"model={self._config.model.name} gives scores {tuple(scores.shape)} for "
                    f"{len(images)} images and {self._classes} classes; it must give one for each "
                    "class"
                )
            smoothing = self._recipe.label_smoothing
            return cross_entropy(scores, batch.labels, label_smoothing=smoothing)

    def validate(self, images: Iterable[Batch], check_stop: Callable[[], None]) -> dict[str, float]:
        """Return the metrics of the shipped network; see `validation`."""
        with self.compiler.aside():
            return validation.validate(
                self.shipped, images, self._world, self.autocast(), check_stop
            )

    def numbers(self) -> dict[str, object]:
        """Return facts about the network for an epoch's row: size, branch weights, memory."""
        facts: dict[str, object] = {"parameters": sum(p.numel() for p in self.model.parameters())}
        if weights := dyrep.branch_weights(self.model):
            facts["branch_weights"] = weights
        if self._world.device.type == "cuda":
            facts["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._world.device) / 2**30
        return facts

    def share_statistics(self) -> None:
        """Copy the batch norm statistics of the main process to all: each has its own."""
        self._world.spread(list(self.model.buffers()))
        if self.ema:
            self._world.spread(list(self.ema.buffers()))

    def train(self) -> None:
        """Set the network to training mode."""
        self._wrapped.train()

    def wrap(self) -> None:
        """Compile the network in its current structure, and wrap it in DDP."""
        optim.arrange(self.optimizer)
        self.compiler.apply(self.model)
        self._wrapped = self.model
        if self._world.world_size > 1:
            ids = [self._world.device.index] if self._world.device.type == "cuda" else None
            self._wrapped = DistributedDataParallel(
                self.model, device_ids=ids, gradient_as_bucket_view=True
            )
            if self._recipe.deterministic:
                self._settle_buckets()

    def unwrap(self) -> None:
        """Remove DDP and compilation before a change of structure."""
        del self._wrapped
        self.compiler.remove()

    def state(self) -> LearnerState:
        """Return the state that a checkpoint keeps."""
        return {
            "structure": dyrep.structure(self.model),
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "overflows": self.overflows.state(),
        }

    def load_state(self, saved: LearnerState) -> None:
        """Load a state that `state` returned, except its structure, which is built already."""
        self.model.load_state_dict(saved["model"], strict=True)
        if self.ema:
            assert saved["ema"] is not None  # a checkpoint with another train.ema is refused
            self.ema.load_state_dict(saved["ema"], strict=True)
        optim.load(self.optimizer, saved["optimizer"])
        self._schedule.load_state_dict(saved["schedule"])
        self._scaler.load_state_dict(saved["scaler"])
        self.overflows.load_state(saved.get("overflows", {"now": 0, "total": 0}))

    def _count_skipped(self, skipped: bool) -> None:
        self._skipped = self._skipped + 1 if skipped else 0
        if self._skipped == nonfinite.MOST_SKIPPED:
            raise Diverged(
                f"step {self._schedule.last_epoch + 1}: {self._skipped} steps in a row were "
                "skipped because loss or gradients are not finite; lower train.lr, or see where "
                "with train.nonfinite=stop"
            )

    def _settle_buckets(self) -> None:
        """Make DDP arrange its buckets now instead of after the first step.

        DDP arranges them once, by the order in which gradients arrive, and the order of additions
        between processes follows the buckets. Otherwise the first step after a restart would be
        summed in another order than the same step without a restart.
        """
        kept = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        data, device = self._config.data, self._world.device
        images = torch.zeros(2, data.channels, *[data.image_size] * 2, device=device)
        self._wrapped.train()
        with generators.kept(), self.compiler.aside(), self.autocast():
            scores = self._wrapped(images)
        scores.float().sum().backward()
        self.optimizer.zero_grad()
        for buffer, value in kept:
            buffer.copy_(value)
