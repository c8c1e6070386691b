"""A network before anything is trained: whether it can be built, what it costs, what can grow.

This project's own networks are counted by arithmetic. Those of libraries are built without memory
and given one image, by `python -m pipeline.outline` in a process of its own: a launch imports no
torch, and where there is none, or no answer in time, the plan says so and goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.records.provenance import PROJECT

PATIENCE = 120  # seconds; a large network takes ten
STEP = 8  # the side of images that grow is a multiple of it, pixels
CLASSES = dict.fromkeys(("digits", "cifar10", "mnist", "fashion_mnist", "kmnist"), 10)
CLASSES["cifar100"] = 100
UNTOLD = 1000  # classes, where prep counts them: they change little but the last layer


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What is known of the plain network.

    Args:
        flops: of one image; a multiply-add counts 2.
        growable: convolutions that can take branches of the method.
        left: why others cannot, and how many.
    """

    parameters: int
    flops: int
    growable: int
    left: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """Why nothing is known of the network."""

    why: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked: a network, the sides and number of its images, the branches it shall take.

    `classes` are those of the data, `UNTOLD` where they are known after prep alone.
    """

    model: dict[str, Any]
    sides: list[int]
    batch: int
    branches: list[str]
    classes: int = UNTOLD

    @classmethod
    def of(cls, config: Config, counted: int | None = None) -> Request:
        """Return what a training asks of its network; the first side is that of evaluation."""
        size, first = config.data.image_size, config.train.augment.progressive
        smallest = size if first is None else min(size, max(STEP, round(first / STEP) * STEP))
        processes = config.cluster.processes("train") * config.cluster.given("train", "nodes")
        return cls(
            model=config.model.model_dump(),
            sides=[size, smallest],
            batch=config.train.batch_size // (processes * config.train.accumulate),
            branches=list(getattr(config.method, "branches", ["kxk"])),
            classes=classes(config, counted) or UNTOLD,
        )


def classes(config: Config, counted: int | None) -> int | None:
    """Return how many classes the data have; None where prep has to count them first."""
    return counted or getattr(config.data, "classes", CLASSES.get(config.data.name))


def look(config: Config, counted: int | None = None) -> Outline | Unknown:
    """Return what is known of the network of a configuration.

    Args:
        config: Of a run.
        counted: Classes that prep has found, if it is finished.

    Raises:
        UserError: it cannot be built, run on such images, or grow although the method grows.
    """
    request = Request.of(config, counted)
    if config.model.family in ("vgg", "mobilenet_v1"):
        from pipeline.outline import own

        found: Outline | Unknown = own.outline(request)
    else:
        found = _built(json.dumps(vars(request)))
    if isinstance(found, Outline) and not found.growable and config.method.kind != "plain":
        reasons = "; ".join(f"{reason} ({count})" for reason, count in found.left.items())
        raise UserError(
            f"method={config.method.name} finds no convolution to grow in {config.model.name}: "
            f"{reasons or 'it has none larger than 1x1'}; use method=plain or another model="
        )
    return found


def try_optimizer(config: Config) -> Unknown | None:
    """Try an optimizer of timm on a tiny network; return why it could not be tried.

    Raises:
        UserError: there is none of that name, or it cannot train, grow or be resumed.
    """
    if config.train.optimizer == "sgd":
        return None
    asked = {name: getattr(config, name).model_dump(mode="json") for name in ("train", "method")}
    return _tried(json.dumps(asked), config.cluster.name == "slurm")


@cache
def _tried(request: str, elsewhere: bool) -> Unknown | None:
    answer = ask(["--optimizer"], request)
    if isinstance(answer, Unknown):
        return answer
    if elsewhere and answer.get("needs_gpu"):
        return Unknown(why="it needs a GPU and there is none here; the job tries it first")
    if "refused" in answer:
        raise UserError(answer["refused"])
    return None


@cache
def _built(request: str) -> Outline | Unknown:
    """Return what the process that has torch says; of one network it is asked once."""
    answer = ask(["--outline"], request)
    if isinstance(answer, Unknown):
        return answer
    if "refused" in answer:
        raise UserError(answer["refused"])
    return Outline(**answer)


def ask(arguments: list[str], request: str = "") -> Any:
    """Return the answer of `python -m pipeline.outline`, or why there is none."""
    if find_spec("torch") is None:
        return Unknown(why="torch is not installed here")
    try:
        with TemporaryDirectory() as scratch:  # torch makes its cache; a dry run leaves none
            done = subprocess.run(
                [sys.executable, "-m", "pipeline.outline", *arguments],
                input=request, capture_output=True, text=True, cwd=PROJECT, timeout=PATIENCE,
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": scratch},
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Unknown(why=f"it took longer than {PATIENCE} s")
    if done.returncode:
        return Unknown(why=(done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    return json.loads(done.stdout.splitlines()[-1])
