"""Check a launch before anything is written: enough images, a writable root, wandb installed."""

from __future__ import annotations

import math
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from pipeline.config import Config
from pipeline.config.train import Train
from pipeline.custom import code
from pipeline.data.sources.choose import source
from pipeline.data.sources.folders import ImageFolder
from pipeline.display.errors import OTHERS, UserError
from pipeline.planning import again, machine, outline
from pipeline.planning.plan import verify
from pipeline.planning.planned_stage import PlannedStage
from pipeline.records import caches, disk, rundir, store
from pipeline.records.schemas import Result
from slurm import private

SEARCHED = (  # sources that read data.root with all its folders
    "imagefolder",
    "imagenet",
    "parquet",
    "webdataset",
)
ENLARGED = 2  # factor of upscaling above which a note is printed
AVERAGED = 0.1  # share of the first weights in their average above which a note is printed
UNWATCHED = 5  # first steps of a training, which `training.profile` leaves out


def check(config: Config) -> None:
    """Refuse a launch that would fail later, except for its images (see `data_error`).

    Raises:
        UserError: the launch would fail; the message names the setting and the cure.
    """
    if sys.flags.optimize > 1:
        raise UserError(
            "Python takes docstrings away here, and DALI needs them; `unset PYTHONOPTIMIZE`, and "
            "start Python without -OO"
        )
    if (taken := private.umask()) & stat.S_IRWXU:
        raise UserError(
            f"umask {taken:04o} takes your own permissions from all that is written; `umask 022`, "
            "and launch again"
        )
    rundir.check_links(Path(config.root), "stages", "runs", "data", f"runs/{config.name}")
    _check_root(Path(config.root))
    if config.cluster.name == "local":
        machine.check(config)
    code.check(config)
    if config.tracking.mode == "online" and find_spec("wandb") is None:
        raise UserError(
            "tracking=online needs wandb, which is not installed; `pip install wandb`, or use "
            "tracking=offline or disabled"
        )
    if "tensorboard" in config.tracking.also and find_spec("tensorboard") is None:
        raise UserError(
            "tracking.also=[tensorboard] needs tensorboard, which is not installed; "
            "`pip install tensorboard` (the extra [tensorboard]), or use tracking.also=[csv]"
        )


def check_stages(config: Config, plan: list[PlannedStage]) -> None:
    """Refuse a launch on finished stages that were damaged, or that would repeat stages in use.

    Raises:
        UserError: the message names the file or the stage, and the cure.
    """
    caches.set_folders(Path(config.root))
    verify(plan)
    again.refuse_in_use(plan)


def _check_root(root: Path) -> None:
    above = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not above.is_dir():
        raise UserError(f"root={root}: {above} is not a directory; choose another root=")
    if refused := disk.refusal(above):
        other = "" if OTHERS in str(refused) else ", or choose another root="
        raise UserError(f"root={root} cannot be written: {refused}{other}")
    if shutil.disk_usage(above).free < 50 * 2**20:
        raise UserError(f"root={root}: less than 50 MiB free on the disk; make room or move root=")


def data_error(config: Config, plan: list[PlannedStage]) -> UserError | None:
    """Return the error in a run's images, or None; returned, so that a dry run shows its plan.

    Args:
        config: the configuration of the run.
        plan: its plan; if prep is finished and not repeated, the source is not checked.
    """
    try:
        _check_data(config, plan)
    except UserError as error:
        return error
    return None


def _check_data(config: Config, plan: list[PlannedStage]) -> None:
    """Refuse missing data, and too few training images if the train stage will run."""
    if plan[0].runs:
        _check_apart(config)
    images = _training_images(config, plan[0])
    trains = any(planned.wanted for planned in plan if planned.stage.name == "train")
    if trains and images is not None and images < 1:
        where = "" if config.data.root is None else f" in {config.data.root}"
        raise UserError(f"data={config.data.name} has no images to train on{where}; add some")
    if trains and images is not None and config.train.batch_size > images:
        raise UserError(
            f"train.batch_size={config.train.batch_size} is larger than the {images} "
            f"training images of data={config.data.name}; use a smaller one, e.g. "
            f"train.batch_size={2 ** (images.bit_length() - 1)}"
        )
    if trains and images is not None:
        _check_profile(config, images)


def _check_apart(config: Config) -> None:
    """Refuse a root where prep would read what earlier runs have written as if it were images."""
    if config.data.name not in SEARCHED or config.data.root is None:
        return
    whole = config.data.val_fraction is not None or config.data.name not in (
        "imagefolder",
        "imagenet",
    )
    folders = [config.data.root, *(f"{config.data.root}/{split}" for split in ("train", "val"))]
    root = Path(os.path.realpath(config.root))
    for folder in folders if whole else folders[1:]:
        if root.is_relative_to(os.path.realpath(folder)):
            raise UserError(
                f"root={config.root} is in {folder}, where prep looks for images and would find "
                "those of earlier runs; choose a root= elsewhere"
            )


def _check_profile(config: Config, images: int) -> None:
    if (watched := config.train.profile) is None:
        return
    steps = config.train.epochs * (images // config.train.batch_size)
    if watched + UNWATCHED > steps:
        less = f"use at most {steps - UNWATCHED}, or " * (steps > UNWATCHED)
        raise UserError(
            f"train.profile={watched} would write nothing: {UNWATCHED} steps come before, and the "
            f"training has {steps}; {less}leave it out"
        )


def notes(config: Config, prep: PlannedStage, side: float | None) -> Iterator[str]:
    """Yield notes on settings whose effect depends on the images, of about `side` pixels."""
    images, wanted = _training_images(config, prep), config.train.recalibrate
    if images and wanted and wanted > (there := images // config.train.batch_size):
        yield f"train.recalibrate={wanted} takes all {there} batches of an epoch: there are no more"
    if images:
        yield from _note_average(config.train, images)
    size = config.data.image_size
    if side and size > ENLARGED * side:
        yield (
            f"data.image_size={size} enlarges the images {size / side:.1f} times: they have about "
            f"{side:.0f} pixels a side; a smaller one trains faster"
        )


def _note_average(train: Train, images: int) -> Iterator[str]:
    """Yield a note if the averaged weights, which are shipped, are still much like the first."""
    steps = train.epochs * (images // train.batch_size)
    if train.ema is None or train.ema_warmup or (left := train.ema**steps) < AVERAGED:
        return
    most = math.floor(1000 * 0.01 ** (1 / max(steps, 1))) / 1000
    yield (
        f"train.ema={train.ema} leaves {100 * left:.0f} % of the first weights in the averaged "
        f"network, which is shipped: the training has {steps} steps; use at most {most:g}, or "
        "train.ema_warmup=true"
    )


def _training_images(config: Config, prep: PlannedStage) -> int | None:
    """Return the number of training images; None if only prep can count them."""
    if prep.state == "done" and not prep.repeats:
        try:
            return int(store.read(Result, prep.dir).metrics["train_images"])
        except (KeyError, ValueError, OverflowError) as error:  # not a number of images
            raise rundir.damaged(prep.dir / rundir.RESULT, error) from None
    if config.data.name == "custom":
        tried = outline.try_images(config)
        return None if isinstance(tried, outline.Unknown) else tried.training
    images = source(config.data).count()
    return images - math.ceil(images * (config.data.val_fraction or 0))


def images(config: Config, prep: PlannedStage) -> outline.Images:
    """Return the facts known about the images, from prep or from the first images."""
    if prep.state == "done" and not prep.repeats:
        found = store.read(Result, prep.dir).metrics
        classes = found.get("classes")  # older results have neither the classes nor the side
        counted = None if classes is None else int(classes)
        return outline.Images(training=None, classes=counted, side=found.get("mean_side"))
    nothing = outline.Images(training=None, classes=None, side=None)
    if config.data.name == "custom":
        tried = outline.try_images(config)
        return tried if isinstance(tried, outline.Images) else nothing
    folder = source(config.data)
    if not isinstance(folder, ImageFolder):
        return nothing
    return outline.Images(training=None, classes=folder.class_count(), side=folder.first_side())
