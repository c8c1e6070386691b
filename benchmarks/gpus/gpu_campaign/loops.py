"""Define the compared training loops: bare torch, ours, timm's; all with images on the device.

A loop is called with a number of steps. It returns when they are queued, not when they are done.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.config import Config
from pipeline.contract import world
from pipeline.contract.stage import Context
from pipeline.contract.table import STAGES
from pipeline.data.loaders.base import Batch
from pipeline.networks import architectures
from pipeline.planning.compose import to_config
from pipeline.planning.conf import CONF
from pipeline.records import attempt, rundir
from pipeline.training import device, images, learner, loop

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Change = Callable[[nn.Module], object]


@dataclass(frozen=True)
class Task:
    """A training: `model=` of the pipeline, on random images of a size.

    `changed` adds branches to the network; `settings` are further overrides, for our loop.
    """

    model: str
    size: int  # side of the images, pixels
    batch: int
    classes: int = 1000
    precision: str = "bfloat16"
    channels_last: bool = False
    compile: str = ""  # or `model`; our loop also supports `blocks`
    changed: Change | None = None
    settings: tuple[str, ...] = ("method=plain",)

    def form(self) -> torch.memory_format:
        """The memory format of weights and images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @cached_property
    def config(self) -> Config:
        """The configuration of this training, as a launch would compose it."""
        return composed(
            f"model={self.model}", "data=synthetic", f"data.image_size={self.size}",
            f"data.classes={self.classes}", "data.images=2000000", "train=imagenet",
            f"train.batch_size={self.batch}", f"train.precision={self.precision}",
            "checkpoint.interval='1000000 steps'", *self.settings,
            *([f"train.compile={self.compile}"] if self.compile else []),
        )  # fmt: skip

    def network(self) -> nn.Module:
        """Return the network on the device, with its branches."""
        torch.manual_seed(0)
        model = architectures.build(self.config.model, self.classes)
        if self.changed:
            self.changed(model)
        return model.to(DEVICE, memory_format=self.form()).train()

    def data(self) -> Batch:
        """Return a batch on the device."""
        draw = torch.Generator().manual_seed(0)
        shown = torch.randn(self.batch, 3, self.size, self.size, generator=draw)
        labels = torch.randint(self.classes, (self.batch,), generator=draw)
        numbers = torch.arange(self.batch)
        shown = shown.to(DEVICE).contiguous(memory_format=self.form())
        return Batch(shown, labels.to(DEVICE), numbers.to(DEVICE))

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the forward."""
        kind = learner.PRECISIONS.get(self.precision)
        return torch.autocast(DEVICE.type, kind, enabled=kind is not None)


@cache
def composed(*overrides: str) -> Config:
    """Return the configuration of a launch."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        tree = hydra.compose("config", list(overrides), return_hydra_config=True)
    choices = dict(tree.hydra.runtime.choices)
    del tree.__dict__["_content"]["hydra"]
    return to_config(tree, choices, [])


class Flags:
    """The global switches of torch's libraries that a loop needs; other loops need others."""

    PLACES = (
        (torch.backends.cudnn, "benchmark"),
        (torch.backends.cudnn, "allow_tf32"),
        (torch.backends.cuda.matmul, "allow_tf32"),
    )

    def __init__(self) -> None:
        self._values = [getattr(place, name) for place, name in self.PLACES]

    def set(self) -> None:
        """Set the switches to the values that they had when this object was made."""
        for (place, name), value in zip(self.PLACES, self._values, strict=True):
            setattr(place, name, value)


USUAL = Flags()  # torch's defaults


class Bare:
    """A training loop of plain torch without anything unnecessary, written to be fast."""

    def __init__(self, task: Task) -> None:
        USUAL.set()
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        self._flags = Flags()
        self._task, self.batch = task, task.data()
        self.model = task.network()
        self.optimizer = self._optimizer()
        self._called = torch.compile(self.model) if task.compile else self.model

    def __call__(self, steps: int) -> None:
        self._flags.set()
        for _ in range(steps):
            with self._task.autocast():
                loss = cross_entropy(self._called(self.batch.images), self.batch.labels)
            loss.backward()
            self.noted()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def noted(self) -> None:
        """Do nothing between backward and optimizer; subclasses look at the gradients."""

    def _optimizer(self) -> torch.optim.Optimizer:
        recipe, parameters = self._task.config.train, list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(
            groups, lr=recipe.lr, momentum=recipe.momentum, fused=DEVICE.type == "cuda"
        )


class Timm:
    """Timm's training step as in its train.py, with timm's optimizer, schedule and meters.

    The package does not contain train.py. This is its step for one process, without gradient
    accumulation, clipping or a loss scaler. The host reads its loss at every step.
    """

    def __init__(self, task: Task) -> None:
        from timm.optim import create_optimizer_v2
        from timm.scheduler import CosineLRScheduler
        from timm.utils import AverageMeter

        USUAL.set()
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        self._flags = Flags()
        self._task, self._batch, recipe = task, task.data(), task.config.train
        self._model = task.network()
        self._optimizer = create_optimizer_v2(
            self._model, opt="momentum", lr=recipe.lr, weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
        )  # fmt: skip
        self._schedule = CosineLRScheduler(self._optimizer, t_initial=1_000_000, t_in_epochs=False)
        self._loss = nn.CrossEntropyLoss().to(DEVICE)
        self._losses, self._times, self._updates = AverageMeter(), AverageMeter(), 0
        self._called = torch.compile(self._model) if task.compile else self._model

    def __call__(self, steps: int) -> None:
        self._flags.set()
        begun = time.time()
        for _ in range(steps):
            shown = self._batch.images
            if self._task.channels_last:
                shown = shown.contiguous(memory_format=torch.channels_last)
            with self._task.autocast():
                loss = self._loss(self._called(shown), self._batch.labels)
            loss.backward()
            self._optimizer.step()
            self._losses.update(loss.item(), shown.size(0))
            self._updates += 1
            self._optimizer.zero_grad()
            self._times.update(time.time() - begun)
            begun = time.time()
            self._schedule.step_update(num_updates=self._updates, metric=self._losses.avg)


class Enough(Exception):
    """The requested steps are made."""


class Endless:
    """The loader of an endless epoch, which repeats one batch on the device."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.steps = batch, 0

    def __len__(self) -> int:
        return 1_000_000

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps):
            yield self.batch
        raise Enough

    def state(self) -> Tensor:
        """Return the position, which is always the beginning."""
        return torch.zeros(1, dtype=torch.uint8)


class OnDevice(images.Images):
    """Random images on the device for a training, without prepared data."""

    task: Task

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._endless = Endless(self.task.data())

    @property
    def classes(self) -> int:
        return self.task.classes

    def training(self, since: int = 0, state: Tensor | None = None) -> Endless:
        return self._endless

    def validation(self) -> list[Batch]:
        return [self._endless.batch]

    def calibration(self, count: int, epoch: int, check_stop: Callable[[], None]) -> list[Tensor]:
        return [self._endless.batch.images] * count

    def chosen(self, used: Endless) -> str:
        return "random images on the device"


class Ours:
    """The training loop of the pipeline as it runs in a job, except for the images.

    Its loader stops it between two steps, and the next call continues from there. Its memory format
    is that of the task, instead of the one that the loop would choose (`chosen_form`).
    """

    def __init__(self, task: Task) -> None:
        USUAL.set()
        folder = Path(_folders().enter_context(tempfile.TemporaryDirectory()))
        context = Context(
            stage=STAGES["train"], dir=folder, root=folder, fingerprint="none", config=task.config,
            parents={"prep": folder}, attempt=attempt.claim(folder),
        )  # fmt: skip
        (folder / "data").mkdir()
        for name in (rundir.STAGE, f"data/{rundir.MANIFEST}"):  # a running stage reads these
            (folder / name).touch()
        self.chosen_form = device.layout(DEVICE, task.config.train)
        shown = type("Images", (OnDevice,), {"task": task})
        with (
            patch.object(loop, "Images", shown),
            patch.object(device, "layout", lambda *_: task.form()),
        ):
            self.training = loop.Training(context, _world())
        self._loader = self.training.state.loader
        self._flags = Flags()

    def __call__(self, steps: int) -> None:
        self._flags.set()
        self._loader.steps = steps
        with suppress(Enough):
            self.training.train_epoch()


@cache
def _folders() -> ExitStack:
    return ExitStack()


@cache
def _world() -> world.World:
    """Return the world of a training in one process; it lasts as long as this process."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    return _folders().enter_context(world.world(hang_timeout=900))
