"""Check a network before training: whether it can be built, its cost, and what can grow.

The costs of this project's networks are computed by arithmetic. Networks of libraries and of the
user are built on the meta device in a separate process, `python -m pipeline.planning.outline`,
because a launch imports no torch. If torch is not installed, or the process takes too long, the
plan says so, and the launch continues.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.config import Config
from pipeline.config.base import Target, Values
from pipeline.config.model import Structured, added
from pipeline.custom import code
from pipeline.display.errors import UserError
from pipeline.records.provenance import PROJECT

PATIENCE = 120  # seconds; a large network needs ten of them
STEP = 8  # pixels; the sides of progressive images are multiples of it
CLASSES = {
    "digits": 10,
    "cifar10": 10,
    "cifar100": 100,
    "mnist": 10,
    "fashion_mnist": 10,
    "kmnist": 10,
}
CALLS = "calls"  # key of the last line of output if the user's code ends the process
ASSUMED_CLASSES = 1000  # before prep has counted them; they change the last layer alone


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The size of the plain network, and the number of convolutions that can grow.

    Args:
        flops: per image; a multiply-add counts 2.
        growable: number of convolutions that can take branches of the method.
        left: number of convolutions that cannot, by reason.
        depthwise: number of depthwise convolutions among the growable ones.
        norms: whether a batch norm, which is not frozen, has statistics of its inputs.
        start: lines about initial weights and frozen parameters.
    """

    parameters: int
    flops: int
    growable: int
    left: dict[str, int] = field(default_factory=dict)
    depthwise: int = 0
    norms: bool = True
    start: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Unknown:
    """The reason why a network could not be checked."""

    why: str


@dataclass(frozen=True, kw_only=True)
class Images:
    """Facts found in the first images; None if they are unknown.

    Args:
        training: number of training images, as reported by the user's code.
        classes: number of classes.
        side: side of an image, pixels.
    """

    training: int | None
    classes: int | None
    side: float | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A question about a network.

    Args:
        model: settings of the network.
        sides: sides of its images, pixels; the first is that of evaluation.
        channels: channels of its images.
        batch: images of a micro-batch.
        processes: processes that train together.
        branches: branches of the method.
        classes: number of classes of the data; `ASSUMED_CLASSES` if unknown before prep.
        counted: whether `classes` is the number of classes of the data.
        code_dir: the folder of the user's code.
    """

    model: dict[str, Any]
    sides: list[int]
    batch: int
    branches: list[str]
    classes: int = ASSUMED_CLASSES
    counted: bool = True
    processes: int = 1
    code_dir: str = ""
    channels: int = 3

    @classmethod
    def of(cls, config: Config, counted: int | None = None) -> Request:
        """Return the question about the network of a configuration."""
        size, first = config.data.image_size, config.train.augment.progressive
        smallest = size if first is None else min(size, max(STEP, round(first / STEP) * STEP))
        processes = config.cluster.processes("train") * config.cluster.given("train", "nodes")
        known = classes(config, counted)
        return cls(
            model=config.model.model_dump(),
            sides=[size, smallest],
            batch=config.train.batch_size // (processes * config.train.accumulate),
            branches=added(config.method),
            processes=processes,
            classes=known or ASSUMED_CLASSES,
            counted=known is not None,
            channels=config.data.channels,
        )


def classes(config: Config, counted: int | None) -> int | None:
    """Return the number of classes of the data; None if prep has to count them first."""
    return counted or getattr(config.data, "classes", CLASSES.get(config.data.name))


def of(config: Config, counted: int | None = None, begins: bool = True) -> Outline | Unknown:
    """Return the outline of the network of a configuration.

    Args:
        config: the configuration of a run.
        counted: number of classes that prep has found; None if prep is not finished.
        begins: whether to check the initial weights too; False for a training that is resumed.

    Raises:
        UserError: the network cannot be built, cannot be run on such images, or has no convolution
            that the method can grow.
    """
    request = Request.of(config, counted)
    if config.model.family in ("vgg", "mobilenet_v1"):
        from pipeline.planning.outline import own

        found: Outline | Unknown = own.outline(request)
    else:
        answer = _accepted(_cached_answer("--outline", json.dumps(vars(request)), config.root))
        found = answer if isinstance(answer, Unknown) else Outline(**answer)
    if begins and isinstance(found, Outline):
        found = _started(config, counted, found)
    if isinstance(found, Outline) and not found.growable and config.method.kind != "plain":
        reasons = "; ".join(f"{reason} ({count})" for reason, count in found.left.items())
        raise UserError(
            f"method={config.method.name} finds no convolution to grow in {_title(config)}: "
            f"{reasons or 'it has none larger than 1x1'}; use method=plain or another model="
        )
    if isinstance(found, Outline) and not found.depthwise:
        _refuse_widening(config)
    if isinstance(found, Outline) and not found.norms:
        _refuse_recalibration(config)
    return found


def _title(config: Config) -> str:
    return config.model.target if isinstance(config.model, Target) else config.model.name


def _refuse_widening(config: Config) -> None:
    if (times := getattr(config.method, "widen_depthwise", 1)) > 1:
        raise UserError(
            f"method.widen_depthwise={times} changes nothing: {_title(config)} has no depthwise "
            "convolution that takes branches; leave it out, or use another model="
        )


def _refuse_recalibration(config: Config) -> None:
    kept = config.method.kind in ("plain", "grow") or getattr(config.method, "form", "") == "linear"
    if (batches := config.train.recalibrate) is not None and kept:
        raise UserError(
            f"train.recalibrate={batches} changes nothing: {_title(config)} has no batch norm with "
            "statistics that follow its images; leave it out, or use another model="
        )


def try_optimizer(config: Config) -> Unknown | None:
    """Try an optimizer of timm on a tiny network; return why it could not be tried.

    Raises:
        UserError: there is no such optimizer, or it cannot train, grow or be resumed.
    """
    if config.train.optimizer == "sgd":
        return None
    request = {name: getattr(config, name).model_dump(mode="json") for name in ("train", "method")}
    answer = _cached_answer("--optimizer", json.dumps(request), config.root)
    elsewhere = config.cluster.name == "slurm"
    if elsewhere and isinstance(answer, dict) and answer.get("needs_gpu"):
        return Unknown(why="it needs a GPU and there is none here; the job tries it first")
    return answer if isinstance(_accepted(answer), Unknown) else None


def try_images(config: Config) -> Images | Unknown:
    """Read the first images from the user's code; return the numbers of images and classes.

    Raises:
        UserError: the code cannot be called, or returns no images with classes.
    """
    request = {"data": config.data.model_dump(mode="json")}
    answer = _accepted(_cached_answer("--images", json.dumps(request), config.root))
    return answer if isinstance(answer, Unknown) else Images(**answer)


def _accepted(answer: Any) -> Any:
    if isinstance(answer, dict) and "refused" in answer:
        raise UserError(answer["refused"])
    return answer


def weights(family: str, name: str, word: str) -> Path | Unknown:
    """Return the file of published weights that a library has downloaded.

    Raises:
        UserError: there are no such weights, or they were not downloaded.
    """
    request = {"family": family, "name": name, "word": word}
    answer = _accepted(_cached_answer("--weights", json.dumps(request), ""))
    return answer if isinstance(answer, Unknown) else Path(answer["path"])


def _started(config: Config, counted: int | None, found: Outline) -> Outline:
    """Return the outline of a network with its initial weights and branches, if it has any.

    Raises:
        UserError: they do not fit the network.
    """
    model, method = config.model, config.method
    own = isinstance(model, Target)
    if not (model.pretrained or model.freeze or isinstance(method, Structured) or own):
        return found
    known = classes(config, counted)
    request: Values = {
        "model": model.model_dump(mode="json"),
        "method": method.model_dump(mode="json"),
    }
    request |= {"classes": known or ASSUMED_CLASSES, "counted": known is not None}
    request |= {"head_lr": config.train.head_lr, "channels": config.data.channels}
    answer = _accepted(_cached_answer("--start", json.dumps(request), config.root))
    if isinstance(answer, Unknown):
        return replace(found, start=[f"start: it was not checked: {answer.why}"])
    return replace(found, **answer)


@cache
def _cached_answer(kind: str, request: str, root: str) -> Any:
    """Return the answer of the process with torch; an equal request is sent only once."""
    values = json.loads(request)
    with code.lent(values, Path(root)) as code_dir:
        return ask([kind], json.dumps(values | ({"code_dir": code_dir} if code_dir else {})))


def ask(arguments: list[str], request: str = "") -> Any:
    """Return the answer of `python -m pipeline.planning.outline`, or `Unknown`."""
    if find_spec("torch") is None:
        return Unknown(why="torch is not installed here")
    try:
        with TemporaryDirectory() as scratch:  # torch's cache: a dry run leaves no files
            done = subprocess.run(
                [sys.executable, "-m", "pipeline.planning.outline", *arguments],
                input=request, capture_output=True, text=True, errors="replace", cwd=PROJECT,
                timeout=PATIENCE,
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": scratch},
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Unknown(why=f"it took longer than {PATIENCE} s")
    answer = json.loads((done.stdout.splitlines() or ["null"])[-1])
    if isinstance(answer, dict) and CALLS in answer:
        return {"refused": _ended(answer[CALLS], done.returncode)}
    if done.returncode or answer is None:
        return Unknown(why=(done.stderr.strip().splitlines() or ["it ended without an answer"])[-1])
    return answer


def _ended(setting: str, code: int) -> str:
    """Return a message that says how the user's code ended the process that called it."""
    how = f"with exit code {code}" if code >= 0 else f"by a signal ({signal.strsignal(-code)})"
    return f"{setting} ends the process that calls it, {how}; it must return what it makes"
