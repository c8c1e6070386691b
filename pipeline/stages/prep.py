"""prep: check every image, split train and val, write shuffled shards.

Reads the source named by `data`. Writes `<root>/data/<fingerprint>/` (see `pipeline.data.shards`),
links it as `data`, and shows it in data.html. Fails if the share of bad images exceeds
`data.max_bad`; quarantine.jsonl and data.html then list them. It can be killed at any moment: the
next start continues and ends with the same shards. The folder gets its name when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contract.stage import Context
from pipeline.data import shards
from pipeline.data.prepare import build, duplicates, findings, page
from pipeline.data.prepare.duplicates import Duplicates
from pipeline.data.prepare.patience import patiently
from pipeline.data.prepare.shard_record import Record, images
from pipeline.data.shards import Manifest, Split
from pipeline.data.sources import changes
from pipeline.data.sources.base import Listing
from pipeline.data.sources.choose import source
from pipeline.display.errors import UserError
from pipeline.records import disk, rundir
from pipeline.records.environment import cores

LISTING = "listing"
RECORDS = 2  # version of the records of shards; raised when their form changes


def run(context: Context) -> dict[str, float]:
    """Prepare the data; return counts."""
    final = rundir.data_dir(context.root, context.fingerprint, context.repeat)
    scratch = final.with_name(f".{final.name}.scratch")
    shutil.rmtree(scratch, ignore_errors=True)  # left by a killed attempt
    try:
        return _prepare(context, final, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _prepare(context: Context, final: Path, scratch: Path) -> dict[str, float]:
    data, settings = context.config.data, context.config.prep
    context.progress(0, 0, "listing images")
    listing = patiently(lambda: source(data, scratch).listing(), context.check_stop)
    state = changes.summary(listing)
    items = build.numbered(listing)
    if not _current(final, state):
        building = _begin(final, listing)
        work = build.tasks(listing, data, settings, building, scratch)

        def report(done: int) -> None:
            context.check_stop()
            context.progress(done, len(items), "checking images")

        try:
            records = build.build(work, cores(), report)
        except OSError:
            _tidy(building)
            raise
        _refuse_bad(context, work, records, len(items))
        _finish(context, listing, state, work, records)
        _set_aside(final)
        building.rename(final)
        disk.sync(final.parent)
    disk.link(context.dir / "data", final)
    metrics = findings.metrics(final)
    rundir.write_text(context.dir / "data.html", page.render(final, metrics))
    findings.show(final, metrics)
    return metrics


def _current(final: Path, state: dict[str, Any]) -> bool:
    """Whether a prepared folder is intact and was made of the present files."""
    try:
        return final.exists() and Manifest.load(final).source == state and _whole(final)
    except UserError:  # damaged
        return False


def _whole(final: Path) -> bool:
    """Whether all files of a prepared folder are there, and its shards as they were written."""
    splits = Manifest.load(final).splits
    written = [shard.name for split in splits.values() for shard in split.shards]
    others = [findings.QUARANTINE, findings.PASSED, findings.REMARKS, changes.FILE]
    others += [str(Path(name).with_suffix(".idx")) for name in written]
    return all((final / name).is_file() for name in others) and not any(
        shards.damage(final, split) for split in splits
    )


def _set_aside(final: Path) -> None:
    """Rename a prepared folder that is not current; other stages may still read it."""
    if final.exists():
        number = 1 + len(list(final.parent.glob(f"{final.name}.before-*")))
        final.rename(final.with_name(f"{final.name}.before-{number}"))


def _begin(final: Path, listing: Listing) -> Path:
    """Return the folder to build in; remove its content first if it is of another listing."""
    building = final.with_name(f".{final.name}.building")
    hasher = hashlib.sha256(json.dumps([RECORDS, listing.classes]).encode())
    for item in build.numbered(listing):  # one by one: there may be millions
        hasher.update(json.dumps(item).encode())
    digest = hasher.hexdigest()
    stamp = building / LISTING
    if building.exists() and (not stamp.exists() or stamp.read_text(encoding="utf-8") != digest):
        shutil.rmtree(building)
    building.mkdir(parents=True, exist_ok=True)
    _tidy(building)
    rundir.write_text(stamp, digest)
    return building


def _tidy(building: Path) -> None:
    """Remove partial files, left by a killed process or a full disk."""
    for temporary in building.glob(".*"):
        temporary.unlink(missing_ok=True)


def _refuse_bad(
    context: Context, work: list[build.Task], records: list[Record], images: int
) -> None:
    """Fail if too many images are bad; the next try reads only the shards with bad images again."""
    bad = [row for record in records for row in record.bad]
    allowed = context.config.data.max_bad
    path = context.dir / findings.QUARANTINE
    findings.write(path, bad)
    if len(bad) > allowed * images:
        for task, record in zip(work, records, strict=True):
            if record.bad:
                task.forget()
        counts = {"images": images, "bad": len(bad), "allowed": int(allowed * images)}
        html = page.render_refused(context.config.data.name, counts, path)
        rundir.write_text(context.dir / "data.html", html)
        first = "; ".join(f"{row['name']}: {row['reason']}" for row in bad[:3])
        raise UserError(
            f"{len(bad)} of {images} images are bad, data.max_bad={allowed} allows "
            f"{int(allowed * images)} ({first}); {path} lists all: fix or remove them, or raise "
            "data.max_bad"
        )


def _finish(
    context: Context,
    listing: Listing,
    state: dict[str, Any],
    work: list[build.Task],
    records: list[Record],
) -> None:
    """Remove leaks from the training images; write the manifest and the findings."""
    building = work[0].path.parent
    of_split = {
        split: [index for index, task in enumerate(work) if task.path.name.startswith(split)]
        for split in build.SPLITS
    }
    twice = _without_leaks(work, records, of_split)
    splits = {
        split: _split([records[index] for index in of_split[split]], len(listing.classes))
        for split in build.SPLITS
    }
    for split, found in splits.items():
        if not found.images:
            raise UserError(_nothing_left(context, f"{split} image", records, len(twice.leaks)))
    listed = {item.label for n in of_split["train"] for _, item in work[n].items}
    for label in sorted(listed):
        if not splits["train"].counts[label]:
            what = f"train image of class {listing.classes[label]!a}"
            raise UserError(_nothing_left(context, what, records, len(twice.leaks)))
    mean, std = statistics(np.sum([records[n].histogram for n in of_split["train"]], axis=0))
    sizes = np.unique(images(records)[["height", "width"]])
    Manifest(
        classes=listing.classes,
        mean=mean,
        std=std,
        size=sizes[0].item() if len(sizes) == 1 else None,
        splits=splits,
        parameters={
            "data": context.config.data.model_dump(),
            "prep": context.config.prep.model_dump(),
        },
        source=state,
        passed_over=len(listing.passed),
    ).save(building)
    changes.save(listing, building / changes.FILE)
    counts = {split: found.counts for split, found in splits.items()}
    findings.save(building, listing, counts, records, twice)
    for task in work:
        task.record.unlink(missing_ok=True)
    (building / LISTING).unlink()


def _without_leaks(
    work: list[build.Task], records: list[Record], of_split: dict[str, list[int]]
) -> Duplicates:
    """Find duplicates; remove validation images from the training shards; return the duplicates."""
    train, val = (images([records[n] for n in of_split[split]]) for split in build.SPLITS)
    twice = duplicates.find(train, val, build.Stored(work, records).same)
    for index in of_split["train"]:
        numbers = twice.leaks.keys() & set(records[index].kept["number"].tolist())
        if numbers:
            work[index].record.unlink()  # of a shard that is no longer as it says
            records[index] = build.drop(work[index], records[index], numbers)
    return twice


def _nothing_left(context: Context, what: str, records: list[Record], leaks: int) -> str:
    bad = sum(len(record.bad) for record in records)
    why = [f"{bad} cannot be used ({context.dir / findings.QUARANTINE} lists them)"] if bad else []
    why += [f"{leaks} training images are validation images, too, and left out"] if leaks else []
    return f"no {what} is left: {', '.join(why) or 'there was none to begin with'}; add others"


def _split(records: list[Record], classes: int) -> Split:
    table = images(records)
    return Split(
        images=len(table),
        shards=tuple(record.shard for record in records if record.shard),
        counts=tuple(np.bincount(table["label"], minlength=classes).tolist()),
        pixels=int((table["height"].astype(np.int64) * table["width"]).sum()),
    )


def statistics(histogram: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the pixels per channel, on the scale 0 to 1.

    Args:
        histogram: (channels, 256) counts of the values of each channel.
    """
    values = np.arange(256) / 255
    count = histogram.sum(1)
    mean = histogram @ values / count
    std = np.sqrt(np.maximum(histogram @ values**2 / count - mean**2, 1e-12))
    return _rounded(mean), _rounded(std)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)
