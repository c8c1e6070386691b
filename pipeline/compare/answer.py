"""Answer a comparison: group runs that differ only in their seed, and judge the groups."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from pipeline.compare import front, settings
from pipeline.compare.collect import ACCURACY, Run
from pipeline.compare.groups import Answer, Group
from pipeline.compare.settings import differing, group_by, identity
from pipeline.compare.statistics import Mean, holm, mean, paired
from pipeline.config.base import Values
from pipeline.display.errors import UserError

SAME_IMAGES = {
    "data.loader",
    "data.max_bad",
}  # settings of `data` that do not change which images a training sees
WORK = "train/plain_steps"
SIZES = {"parameters": "fuse/parameters", "parameters_unfused": "fuse/parameters_unfused",
         "flops": "fuse/flops", "flops_unfused": "fuse/flops_unfused",
         "grown": "train/grown", "cut": "train/cut"}  # fmt: skip


def answer(title: str, runs: list[Run], baselines: list[str], force: bool) -> Answer:
    """Group runs, compare the groups, and say what was left out and why.

    Raises:
        UserError: the runs saw different images, or not exactly one group matches `baselines`.
    """
    notes: list[str] = []
    data = _data(runs, force, notes)
    counted, left_out = _sorted_out(runs)
    unit, hours = _hours(counted, notes)
    buckets = group_by(counted, lambda run: identity(run.settings))
    differ = differing([bucket[0].settings for bucket in buckets])
    labels = settings.labels([bucket[0].settings for bucket in buckets], differ)
    groups = [_group(*pair, hours) for pair in zip(labels, buckets, strict=True)]
    groups.sort(key=_rank)
    baseline = _baseline(groups, baselines, notes)
    for group in groups:
        if baseline and group is not baseline:
            group.versus = paired(group.top1_by_seed, baseline.top1_by_seed)
    holm([group.versus for group in groups if group.versus])
    front.mark(groups)
    _note_work(counted, groups, notes)
    _note_places(counted, notes)
    return Answer(
        title=title,
        data=data,
        cost_unit="plain steps",
        time_unit=unit,
        baseline=baseline.label if baseline else None,
        groups=groups,
        left_out=left_out,
        differ={
            key: {g.label: g.settings[key] for g in groups if key in g.settings} for key in differ
        },
        notes=notes,
    )


def _rank(group: Group) -> tuple[float, float, str]:
    """Return what groups are sorted by: accuracy, then what a training costs, then the name."""
    return -group.top1.mean, group.cost.mean if group.cost else math.inf, group.label


def _data(runs: list[Run], force: bool, notes: list[str]) -> str:
    """Return the name of the dataset that the runs were trained on.

    Raises:
        UserError: the runs saw different images, and `force` is not set.
    """
    known = [(run, _images(run)) for run in runs if run.settings]
    seen = group_by(known, lambda pair: identity(pair[1]))
    if len(seen) == 1:  # the settings agree; did the images change between the runs?
        known = [(run, {"validation images": run.metrics.get("eval/images")}) for run, _ in known]
        seen = group_by((p for p in known if p[0].state == "done"), lambda p: identity(p[1]))
    if len(seen) > 1:
        keys = differing([images for ((_, images), *_) in seen])
        examples = [
            f"{'/'.join(str(images.get(key, '–')) for key in keys)} ({run.name})"
            for ((run, images), *_) in seen[:3]
        ]
        what = f"these runs saw different images: {', '.join(keys)} is {', '.join(examples)}"
        if not force:
            raise UserError(f"{what}; choose runs of one dataset, or add --force")
        notes.append(f"{what}; their accuracies do not compare")
        for run, images in known:  # even with `force`, no mean is over different images
            run.settings = run.settings | images
    return " and ".join(sorted({str(run.settings.get("data.name")) for run, _ in known}))


def _images(run: Run) -> Values:
    return {
        key: value
        for key, value in run.settings.items()
        if key.startswith("data.") and key not in SAME_IMAGES
    }


def _sorted_out(runs: list[Run]) -> tuple[list[Run], list[dict[str, str]]]:
    """Return the runs that count, and the others with the reason why they do not."""
    counted: dict[tuple[str, int], Run] = {}
    left_out = []
    for run in runs:
        key = (identity(run.settings), run.seed)
        if run.state != "done":
            left_out.append({"run": run.name, "state": run.state, "why": run.why})
        elif key in counted:
            why = f"settings and seed are those of {counted[key].name}, which is counted"
            left_out.append({"run": run.name, "state": "duplicate", "why": why})
        else:
            counted[key] = run
    return list(counted.values()), left_out


def _note_work(runs: list[Run], groups: list[Group], notes: list[str]) -> None:
    """Note which runs' cost is unknown, and whether costs are in steps of different networks."""
    unknown = [run.name for run in runs if WORK not in run.metrics]
    if unknown:
        which = unknown[0] if len(unknown) == 1 else f"{len(unknown)} runs ({unknown[0]}, …)"
        notes.append(
            f"what {which} cost in plain steps is not known (of an older version, or both networks "
            "did not fit into memory); their groups get no ★ and take none from other groups"
        )
    units = {front.unit(group.settings) for group in groups if group.cost}
    if len(units) > 1:
        notes.append("plain steps are of different networks, image sizes or batches: ★ within each")
    if len(groups) > 1 and not any(group.pareto for group in groups):
        notes.append("no ★: no paired test shows that a group is worth what it costs")


def _hours(runs: list[Run], notes: list[str]) -> tuple[str, Callable[[Run], float | None]]:
    """Return a unit of time that all runs have, and the function that reads it from a run."""
    measured = [run.gpu_hours is not None for run in runs]
    if runs and all(measured):
        return "GPU-hours", lambda run: run.gpu_hours
    if runs:
        who = "not all runs" if any(measured) else "no run"
        notes.append(f"GPU-hours are known of {who}: times are wall-clock hours of training")
    return "hours", lambda run: run.wall_hours


def _group(label: str, runs: list[Run], hours: Callable[[Run], float | None]) -> Group:
    def over(metric: str) -> Mean | None:
        return mean([run.metrics[metric] for run in runs if metric in run.metrics])

    top1 = over(ACCURACY)
    assert top1 is not None  # a run without top-1 does not count
    sizes = {name: over(metric) for name, metric in SIZES.items()}
    timed = {key for run in runs for key in run.metrics if _batch(key)}
    return Group(
        label=label,
        settings=runs[0].settings,
        runs=[run.name for run in runs],
        top1_by_seed={run.seed: run.metrics[ACCURACY] for run in runs},
        top1=top1,
        unfused_top1=over("eval/unfused/top1"),
        val_loss=over("train/val_loss"),
        cost=over(WORK),
        hours=mean([spent for run in runs if (spent := hours(run)) is not None]),
        cost_by_seed={run.seed: run.metrics[WORK] for run in runs if WORK in run.metrics},
        sizes={name: size.mean for name, size in sizes.items() if size},
        latency_ms={  # the median, so that one run timed on a busy machine shifts nothing
            _batch(key): statistics.median(r.metrics[key] for r in runs if key in r.metrics)
            for key in sorted(timed, key=_batch)
        },
        noisy=sum(bool(run.metrics.get("latency/noisy")) for run in runs),
        layers={
            layer: sum(layer in run.layers for run in runs)
            for layer in sorted({layer for run in runs for layer in run.layers})
        },
    )


def _batch(metric: str) -> int:
    """Return the batch size of a metric that is a fused latency; 0 for any other metric."""
    head, _, tail = metric.partition("latency/fused/b")
    size = tail.removesuffix("/p50_ms")
    return int(size) if not head and tail != size and size.isdigit() else 0


def _baseline(groups: list[Group], wanted: list[str], notes: list[str]) -> Group | None:
    """Return the baseline: the group that the others are tested against.

    Raises:
        UserError: no group matches `wanted`, or several do.
    """
    if not groups or (len(groups) == 1 and not wanted):
        return None
    found = groups
    for condition in wanted or ["method=plain"]:
        key, equals, value = condition.partition("=")
        if not equals:
            raise UserError(f"--baseline {condition} is not KEY=VALUE, e.g. method=plain")
        found = [group for group in found if settings.fits(group.settings, key, value)]
        if not found and wanted:
            meant = settings.valid([group.settings for group in groups], key, value)
            raise UserError(f"no group has {condition}; {meant}")
    if len(found) == 1:
        return found[0]
    if wanted:
        labels = " | ".join(group.label for group in found[:4])
        raise UserError(f"{len(found)} groups have {' '.join(wanted)} ({labels}); add --baseline …")
    notes.append(
        "no --baseline was named: the others are tested against the best group, which was chosen "
        "after the results"
    )
    return groups[0]


def _note_places(runs: list[Run], notes: list[str]) -> None:
    """Note differences of device, source or launch between the runs, and noisy latencies."""
    for stage, what in (("latency", "latencies were measured"), ("train", "runs were trained")):
        devices = sorted({run.device[stage] for run in runs if run.device.get(stage)})
        if len(devices) > 1:
            notes.append(
                f"{what} on different devices ({', '.join(devices)}): times do not compare"
            )
    sources = {run.source for run in runs if run.source}
    if len(sources) > 1:
        notes.append(f"the runs come from {len(sources)} source revisions")
    if noisy := [run for run in runs if run.metrics.get("latency/noisy")]:
        which = noisy[0].name if len(noisy) == 1 else f"{len(noisy)} runs ({noisy[0].name}, …)"
        each = "" if len(noisy) == 1 else ", and so for each of them"
        cure = f": time again with {noisy[0].time_again}{each}" if noisy[0].time_again else ""
        notes.append(f"latencies of {which} are noisy{cure}")
    launches = {run.command for run in runs if run.command}
    if len(launches) > 1:
        notes.append(f"the runs come from {len(launches)} launches")
