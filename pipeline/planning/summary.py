"""Print the plan before a launch, and the results after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.table import Table

from pipeline.config import Config
from pipeline.config.base import STAGE_NAMES, StageName, Target
from pipeline.config.data import Data
from pipeline.config.model import Growing, Model
from pipeline.config.train import Train
from pipeline.display.errors import UserError
from pipeline.display.masking import mask
from pipeline.display.terminal import Terminal, bold
from pipeline.planning.outline import ASSUMED_CLASSES, Outline, Unknown, classes
from pipeline.planning.planned_stage import PlannedStage
from pipeline.records import rundir, store
from pipeline.records.schemas import Result

Metrics = Mapping[str, float]
WIDTH = 110  # columns, if the output is not a terminal
ACTIONS = {name: name for name in ("run", "continue", "repeat", "skip")} | {"leave": "not asked"}


def show_plan(
    config: Config,
    plan: list[PlannedStage],
    network: Outline | Unknown | None,
    notes: list[str],
    counted: int | None = None,
) -> None:
    """Print the network and recipe, the stages that will run and why, and notes on defaults.

    Args:
        config: the configuration of the run.
        plan: the stages of the run.
        network: the outline of its network; None if nothing is trained.
        notes: further notes to print.
        counted: number of classes that prep has found; None if prep is not finished.
    """
    console = Terminal(WIDTH)
    console.print(
        bold(config.name),
        f" {_name(config.data)} · {_name(config.model)} · {config.method.name} · "
        f"seed {config.seed}",
        soft_wrap=True,
    )
    for line in _training(config, network, counted) if network else []:
        console.print(f"  {line}", soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for planned in plan:
        table.add_row(planned.stage.name, ACTIONS[planned.action], mask(planned.why))
    console.print(table)


def show_dry_run(root: Path) -> None:
    """Print that this was a dry run, and where its stages would be."""
    stages = rundir.shown(root / "stages")
    Terminal(WIDTH).print(f"dry run: nothing was touched; stages live in {stages}", soft_wrap=True)


def _name(section: Data | Model) -> str:
    """Return the name of the chosen data or model, with the Python name of the user's code."""
    return mask(f"{section.name} {section.target}" if isinstance(section, Target) else section.name)


def _training(config: Config, network: Outline | Unknown, counted: int | None) -> Iterator[str]:
    """Yield lines on what follows from data and recipe: network, stem, growth."""
    size, train = config.data.image_size, config.train
    small = getattr(config.model, "small_stem", None)
    stem = "" if small is None else "small stem, " if small else "published stem, "
    if isinstance(network, Unknown):
        yield f"network: {stem}{size} pixels; it was not checked: {network.why}"
    else:
        yield (
            f"network: {stem}{network.flops / 1e9:.3g} GFLOPs for {size} pixels, "
            f"{network.parameters / 1e6:.3g} M parameters for {_classes(config, counted)}"
            f"{_branches(config, network.growable)}{_start(config)}"
        )
        yield from _left_alone(config, network.left)
        yield from network.start
    yield f"recipe: train={train.name}, {_length(train)} of {_batch(config)}{_growth(config)}"


def _batch(config: Config) -> str:
    """Return the number of images of a step, how they are split, and how often each is repeated."""
    train = config.train
    size, parts, times = train.batch_size, train.accumulate, train.augment.repeats
    split = f" (in {parts} parts of {size // parts})" if parts > 1 else ""
    repeated = f", {times} versions of each image, 1 in {times} images per epoch"
    return f"batch {size}{split}{repeated if times > 1 else ''}"


def _length(train: Train) -> str:
    plain_epochs = train.budget.plain_epochs
    if plain_epochs is None:
        return _count(train.epochs, "epoch")
    return (
        f"at the cost of {plain_epochs:g} epochs of the plain network, "
        f"at most {_count(train.epochs, 'epoch')}"
    )


def _classes(config: Config, counted: int | None) -> str:
    known = classes(config, counted)
    assumed = f"{ASSUMED_CLASSES:,} classes (assumed until prep has counted them)"
    return assumed if known is None else f"{known:,} classes"


def _branches(config: Config, count: int) -> str:
    """Return in words how many convolutions get branches, if the method adds any."""
    if config.method.kind == "plain":
        return ""
    verb = "can grow" if isinstance(config.method, Growing) else f"get{'s' * (count == 1)} branches"
    return f", {_count(count, 'convolution')} {verb}"


def _left_alone(config: Config, left: dict[str, int]) -> Iterator[str]:
    """Yield how many convolutions get no branches, by reason; nothing for a plain method."""
    if left and config.method.kind != "plain":
        reasons = [f"{_count(count, 'convolution')}, {reason}" for reason, count in left.items()]
        yield f"left alone: {mask('; '.join(reasons))}"


def _start(config: Config) -> str:
    if config.method.kind == "grow" and config.model.pretrained:
        return ", kernels start as they were trained, without the identity"
    return ", kernels start with the identity in them" if config.method.start == "identity" else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _growth(config: Config) -> str:
    if not isinstance(config.method, Growing):
        return ""
    every, epochs = config.method.adjust_interval, config.train.epochs
    unit = "epoch" if config.train.budget.plain_epochs is None else "plain epoch"
    times = min(config.method.last_adjust_epoch, epochs - 1) // every
    if not times:
        return "; too short to grow"
    # method.kind=grow goes by the predicted gain, and so may grow nothing at all
    grows = "may grow" if config.method.kind == "grow" else "grows"
    if times == 1:
        return f"; {grows} once, after {unit} {every}"
    often = f"after each {unit}" if every == 1 else f"every {every} {unit}s"
    return f"; {grows} {times} times, {often} up to {unit} {times * every}"


def show_results(directory: Path, report: Path, requested: list[StageName]) -> None:
    """Print a line per stage that is finished or requested, and the paths of data and report."""
    console = Terminal(WIDTH)
    table = Table(title=None, header_style="bold")
    table.add_column("stage")
    table.add_column("result")
    table.add_column("time", justify="right")
    for name in STAGE_NAMES:
        path = directory / name / rundir.RESULT
        if path.exists():
            seconds = store.read(Result, path.parent).seconds
            table.add_row(name, outcome(name, path.parent), f"{seconds:.1f} s")
        elif name in requested:
            table.add_row(name, "not finished", "")
    console.print(table)
    if (data := directory / "prep" / "data.html").exists():
        console.print(f"data: {rundir.shown(data)}", soft_wrap=True)
    console.print(f"report: {rundir.shown(report)}", soft_wrap=True)


def outcome(stage: str, directory: Path) -> str:
    """Return the result of a stage in a few words; if nothing grew, also what could not grow."""
    metrics = store.read(Result, directory).metrics
    why = _could_not_grow(directory) if stage == "train" and metrics.get("grown") == 0 else ""
    return describe(stage, metrics) + why


def describe(stage: str, metrics: Metrics) -> str:
    """Return the result of a stage in a few words."""
    try:
        return LINES[stage](metrics)
    except (KeyError, ValueError, OverflowError) as error:  # e.g. infinitely many epochs
        return f"it lacks {error}"


def _could_not_grow(directory: Path) -> str:
    """Return the commonest reason why convolutions were left alone; "" if none were."""
    try:
        left = rundir.read_json(directory / "structure.json").get("left", {})
    except (OSError, UserError):  # the reason only explains the result, which is valid without it
        return ""
    ((reason, count),) = Counter(left.values()).most_common(1) or [("", 0)]
    return f"; {_count(count, 'convolution')} could not grow: {reason}" if count else ""


def _prep(m: Metrics) -> str:
    labels = {"copies": "copies", "contradictions": "contradictions", "alike": "alike in both",
              "odd_files": "odd", "ignored_files": "passed over"}  # fmt: skip
    more = [f"{m[key]:,.0f} {words}" for key, words in labels.items() if m[key]]
    return ", ".join(
        [
            f"{m['train_images']:,.0f} training and {m['val_images']:,.0f} validation images",
            f"{m['quarantined']:,.0f} quarantined",
            *more,
        ]
    )


def _train(m: Metrics) -> str:
    return (
        f"top-1 {m['top1']:.2f} % after {_count(round(m['epochs']), 'epoch')}{_spent(m)}"
        f"{_chosen(m)}{_grown(m)}{_adjusting(m)}"
        + (f", {m['skipped']:.0f} steps skipped" if m.get("skipped") else "")
        + (f", {m['overflowed']:.0f} beyond float16" if m.get("overflowed") else "")
    )


def _chosen(m: Metrics) -> str:
    return f" (of epoch {m['shipped_epoch']:.0f}, the best)" if "shipped_epoch" in m else ""


def _spent(m: Metrics) -> str:
    return f" for {m['plain_epochs']:.2f} plain ones" if "plain_epochs" in m else ""


def _grown(m: Metrics) -> str:
    counts = f", {m['grown']:.0f} grown, {m['cut']:.0f} cut"
    could_grow = any(m.get(key) for key in ("grown", "cut", "left", "adjusting_steps"))
    return counts if could_grow else ""


def _adjusting(m: Metrics) -> str:
    if not m.get("adjusting_steps") or not m.get("plain_steps"):
        return ""
    return f"; adjusting took {100 * m['adjusting_steps'] / m['plain_steps']:.1f} % of the cost"


def _fuse(m: Metrics) -> str:
    return (
        f"{m['parameters_unfused']:,.0f} → {m['parameters']:,.0f} parameters, "
        f"largest relative error {m['max_rel_error']:.1e}, "
        f"{m['exports']:.0f} export{'s' * (m['exports'] != 1)}"
        + (f", {m['exports_missing']:.0f} missing: see the report" if m["exports_missing"] else "")
    )


def _eval(m: Metrics) -> str:
    return (
        f"top-1 fused {m['fused/top1']:.2f} %, unfused {m['unfused/top1']:.2f} %, "
        + (f"int8 {m['int8/top1']:.2f} %, " if "int8/top1" in m else "")
        + f"agreement {m['agreement']:.2f} % of {m['images']:.0f}"
    )


def _latency(m: Metrics) -> str:
    batch = min(int(key.split("/b")[1].split("/")[0]) for key in m if "/b" in key)
    keys = {v: f"{v}/b{batch}/p50_ms" for v in ("fused", "unfused", "plain")}
    times = [f"{variant} {m[key]:.2f}" for variant, key in keys.items() if key in m]
    noisy = "; noisy, see the report" if m.get("noisy") else ""
    return f"{', '.join(times)} ms at batch {batch} (median){noisy}"


LINES = {"prep": _prep, "train": _train, "fuse": _fuse, "eval": _eval, "latency": _latency}
