"""Refuse settings that fit the schema and make no sense.

Each check yields the errors as lines that name the cure. Only new settings are checked: a run that
is older than a check stays readable and can be continued.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pipeline.config import policy
from pipeline.config.base import Flat, written
from pipeline.config.data import MAX_ASPECT, MAX_PIXELS
from pipeline.config.rules import RULED, WINDOWS
from pipeline.config.train import ENDING, OF_SCHEDULE, Train
from pipeline.display.masking import mask

LARGEST = 10**9  # largest integer
MOST = {  # largest values of single settings
    "seed": 2**63 - 1,
    "data.split_seed": 2**32 - 1,  # scikit-learn splits with it
    "data.image_size": 2**14,
    "data.resize": 2**14,
    "train.augment.repeats": 1000,
    "latency.threads": 2**12,
    "method.widen_depthwise": 16,
    "train.decay_power": 100,
    "train.label_smoothing": 0.99,
}
LEAST = {  # smallest values with an effect
    "train.lr": 1e-9,
    "train.head_lr": 1e-9,
    "train.layer_decay": 0.1,
    "train.clip_grad": 1e-6,
    "train.decay_rate": 1e-6,
    "train.augment.scale": 1e-3,
    "train.augment.ratio": 1e-2,
}
COUNTS = {"digits": (1797, 10)}  # images and classes
PLACELESS = ("digits", "synthetic")
CANNOT = {"memory": ("policy",), "dali": ("policy", "erase", "cutout")}  # unsupported in `augment`
RANGES = ("train.augment.scale", "train.augment.ratio")
SETS = (
    "method.branches", "model.freeze", "stage.run", "again", "fuse.exports", "eval.shifts",
    "latency.batch_sizes", "latency.also", "tracking.also",
)  # fmt: skip
NOT_IN_WANDB = "/\\#?%:"  # characters that W&B refuses in names
OPSET = 23  # the newest that the exporter of torch 2.10 knows
EXACT = 2.0**-52  # relative spacing of float64
HUE = 0.5  # share of the colour circle, in either direction; this covers the whole circle
JITTER = 10  # largest change of brightness, contrast and saturation: beyond, images are noise


def wrong(flat: Flat) -> str | None:
    """Return the first error, or None."""
    found = (line for check in CHECKS for line in check(flat))
    return next(found, None)


def _numbers(flat: Flat) -> Iterator[str]:
    ruled = [f"{section}.{key}" for section, key, _ in RULED]  # derived settings are checked last
    for key, value in sorted(_leaves(flat), key=lambda leaf: leaf[0] in ruled):
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{key}={value} is not a finite number; give one"
        most = MOST.get(key, LARGEST)
        if isinstance(value, int | float) and value > most:
            yield f"{key}={value} is too large; use at most {most}"
        if isinstance(value, int | float) and value < LEAST.get(key, value):
            yield f"{key}={value} is so small that nothing is learned; use at least {LEAST[key]:g}"


def _texts(flat: Flat) -> Iterator[str]:
    for key, value in _leaves(flat):
        if isinstance(value, str) and any(ord(sign) < 32 or ord(sign) == 127 for sign in value):
            yield f"{key}={value!r} contains a control character; remove it"
        if value == "":
            yield f"{key}= is empty; give {key}=VALUE or leave it out"


def _names(flat: Flat) -> Iterator[str]:
    for key in ("name", "group"):
        if (value := flat.get(key)) and mask(value) != value:
            yield f"{key}={value} looks like a secret, and names are shown; choose another name"
    for key in ("tracking.project", "tracking.entity"):
        if odd := set(flat.get(key) or "") & set(NOT_IN_WANDB):
            yield f"{key}={flat[key]} has a {min(odd)} in it, which W&B refuses; leave that out"


def _lists(flat: Flat) -> Iterator[str]:
    for key in SETS:
        twice = [item for item in flat.get(key) or [] if flat[key].count(item) > 1]
        if twice:
            yield f"{key} names {twice[0]} twice; name it once"
    for key in RANGES:
        least, most = flat[key]
        if least > most:
            yield f"{key}=[{least},{most}] has its ends reversed; write [{most},{least}]"
    if not all(flat.get("model.widths", [[1]])):
        yield "model.widths has a stage without convolutions; write e.g. [[32],[64]]"


def _augmentation(flat: Flat) -> Iterator[str]:
    size, prefix = flat["data.image_size"], "train.augment"
    if (chosen := flat[f"{prefix}.policy"]) is not None and chosen not in policy.POLICIES:
        yield from (f"{prefix}.policy={line}" for line in policy.wrong(chosen))
    if (padding := flat[f"{prefix}.padding"]) >= size:
        yield f"{prefix}.padding={padding} takes all of images of {size} pixels; use less"
    if (first := flat[f"{prefix}.progressive"]) is not None and first > size:
        yield (
            f"{prefix}.progressive={first} is above data.image_size={size}, which images grow to; "
            "use a smaller one, or null"
        )
    if (times := flat[f"{prefix}.repeats"]) > 1 and times >= flat["train.batch_size"]:
        yield (
            f"{prefix}.repeats={times} fills a whole batch (train.batch_size="
            f"{flat['train.batch_size']}) with versions of one image; use a few, e.g. 3"
        )
    if flat[f"{prefix}.cutout_clip"] and not flat[f"{prefix}.cutout"]:
        yield f"{prefix}.cutout_clip=true clips no square; give {prefix}.cutout, e.g. {size // 2}"
    if flat[f"{prefix}.rotate"] > 180:
        yield f"{prefix}.rotate={flat[f'{prefix}.rotate']} is over half a turn; use at most 180"
    *others, hue = flat[f"{prefix}.jitter"]
    if hue > HUE:
        yield f"{prefix}.jitter turns the hue by {hue}; use at most {HUE}"
    if max(others) > JITTER:
        yield f"{prefix}.jitter changes a colour by the factor {max(others)}; use at most {JITTER}"


def _learning_rate(flat: Flat) -> Iterator[str]:
    """Check that the schedule reads every setting, and that each drop comes within the epochs."""
    schedule, epochs = flat["train.schedule"], flat["train.epochs"]
    for name, schedules in OF_SCHEDULE.items():
        value = flat[f"train.{name}"]
        if schedule not in schedules and value != Train.model_fields[name].default:
            yield (
                f"train.{name}={written(value)} is a setting of train.schedule="
                f"{' or '.join(schedules)}, "
                f"not of {schedule}; leave it out, or choose that"
            )
    for name in ("decay_epochs", "cycle_epochs"):
        value = flat[f"train.{name}"]
        after = max(value) if isinstance(value, list) else value
        if after and after >= epochs > 1 and schedule not in ("exponential", *ENDING):
            which = f"{after} of train.{name}=" if isinstance(value, list) else f"train.{name}="
            yield (
                f"{which}{written(value)} never comes with train.epochs={epochs}; use less, or "
                "another train.schedule"
            )
    after, most = flat["train.decay_epochs"], epochs - flat["train.warmup_epochs"]
    if schedule in ENDING and after and after > most:
        yield (
            f"train.decay_epochs={after} is more than train.schedule={schedule} has after its "
            f"warm-up; use at most {most}"
        )
    if (until := flat["train.recalibrate_until"]) is not None and until > epochs:
        yield (
            f"train.recalibrate_until={until} is beyond the end, train.epochs={epochs}; use less, "
            "or leave it out"
        )
    if flat["train.decay_norms"] and not flat["train.weight_decay"]:
        yield "train.decay_norms=true decays by train.weight_decay=0; give that, or leave it out"
    if (patience := flat["train.patience"]) is not None and patience >= epochs > 1:
        yield (
            f"train.patience={patience} never ends a training of train.epochs={epochs}; use less, "
            "or leave it out"
        )
    if flat["train.ema_warmup"] and flat["train.ema"] is None:
        yield "train.ema_warmup=true is about averages; give train.ema, e.g. 0.999, or leave it out"


def _schedule(flat: Flat) -> Iterator[str]:
    epochs, warmup = flat["train.epochs"], flat["train.warmup_epochs"]
    if warmup > epochs:
        yield (
            f"train.warmup_epochs={warmup} is more than train.epochs={epochs}; "
            "set train.warmup_epochs below train.epochs"
        )
    if flat["method.kind"] not in WINDOWS:
        return
    interval, last = flat["method.adjust_interval"], flat["method.last_adjust_epoch"]
    most = min(last, epochs - 1)  # no adjustment after the last epoch
    if epochs > 1 and interval > most:  # a single epoch is only a trial
        until = f"method.last_adjust_epoch={last}" if last < epochs else f"train.epochs={epochs}"
        cure = f"method.adjust_interval={most}" if most else "a later method.last_adjust_epoch"
        yield (
            f"method.adjust_interval={interval} never comes with {until}: nothing would grow; "
            f"use {cure}, or method=plain"
        )
    if flat["method.branches"] == ["kxk"]:
        yield "method.branches=[kxk] adds nothing to a convolution; add others, e.g. [1x1]"


def _images(flat: Flat) -> Iterator[str]:
    shrink, side = flat["prep.shrink"], flat["data.resize"] or flat["data.image_size"]
    if shrink is not None and shrink < side:
        yield (
            f"prep.shrink={shrink} leaves less than the {side} pixels the network is shown "
            f"(data.resize or data.image_size); use {side} or more"
        )
    if flat.get("data.classes") == 1:
        yield "data.classes=1 leaves nothing to tell apart; use 2 or more"
    yield from _sizes(flat.get("data.height") or side, flat.get("data.width") or side)
    images, classes = COUNTS.get(flat["data.name"], (flat.get("data.images"), None))
    classes = classes or flat.get("data.classes")
    if images and classes and flat["data.val_fraction"]:
        yield from _split(images, classes, flat["data.val_fraction"])


def _sizes(height: int, width: int) -> Iterator[str]:
    """Check the limits above which prep leaves an image out."""
    sizes = f"data.height={height} and data.width={width}"
    if height * width > MAX_PIXELS:
        yield f"{sizes} are more than {MAX_PIXELS // 10**6} million pixels; use less"
    if max(height, width) > MAX_ASPECT * min(height, width):
        yield f"{sizes} are thinner than 1:{MAX_ASPECT}; use sides that are more alike"


def _split(images: int, classes: int, share: float) -> Iterator[str]:
    """Check that both splits have images of each class."""
    held = math.ceil(share * images)  # as scikit-learn counts
    wrong = f"data.val_fraction={share} of {images} images cannot"
    each = f"some of each of the {classes} classes"
    if images < 2 * classes:
        yield f"data.images={images} cannot show {each} twice; use {2 * classes} or more"
    elif held < classes:
        yield f"{wrong} hold out {each}; use {math.ceil(100 * classes / images) / 100} or more"
    elif images - held < classes:
        most = math.floor(100 - 100 * classes / images) / 100
        yield f"{wrong} leave {each} to train on; use {most} or less"


def _place(flat: Flat) -> Iterator[str]:
    name, root = flat["data.name"], flat["data.root"]
    if root is not None and name in PLACELESS:
        yield (
            f"data.root={root} is not read by data={name}, which brings its images along; "
            "for a folder of images: data=imagefolder; see docs/data.md for others"
        )


def _loader(flat: Flat) -> Iterator[str]:
    """Check that the loader supports the augmentation; `auto` chooses one that does."""
    loader, prefix = flat["data.loader"], "train.augment"
    wanted = {name: flat[f"{prefix}.{name}"] for name in CANNOT.get(loader, ())}
    for name, value in wanted.items():
        if value:
            yield (
                f"data.loader={loader} does not do {prefix}.{name}={value}; use data.loader=auto, "
                "or leave it out"
            )


def _starts(flat: Flat) -> Iterator[str]:
    """Check that random initial values do not overwrite or disturb pretrained weights."""
    for key in ("model.pretrained", "method.structure"):
        if flat.get(f"{key}_sha256") and not flat[key]:
            yield f"{key}_sha256 is of a file, and there is none; give {key}, too"
    if flat["model.pretrained"] is None:
        return
    method = flat["method.name"]
    if flat["method.kind"] in ("static", "structure"):
        yield (
            f"method={method} puts fresh branches on the network, which would undo "
            "model.pretrained; use method=plain, or dyrep or grow, which change nothing at first"
        )
    if flat["method.start"] == "identity":
        yield (
            "method.start=identity adds to every kernel, which would undo model.pretrained; "
            "leave method.start out"
        )


def _exports(flat: Flat) -> Iterator[str]:
    if flat["fuse.opset"] > OPSET:
        yield f"fuse.opset={flat['fuse.opset']} is newer than the exporter; use 18 to {OPSET}"
    if (tolerance := flat["fuse.tolerance"]) < EXACT or 1 <= tolerance < math.inf:
        what = "is finer than float64" if tolerance < EXACT else "accepts any network"
        yield f"fuse.tolerance={tolerance:g} {what}; use e.g. 1e-9"


CHECKS = (
    _exports, _numbers, _texts, _names, _lists, _augmentation, _learning_rate, _schedule, _place,
    _images, _loader, _starts,
)  # fmt: skip


def _leaves(flat: Flat) -> Iterator[tuple[str, Any]]:
    """Yield each value with its key; those of a list with the key of the list."""
    for key, value in flat.items():
        inside = [value]
        while inside:
            item = inside.pop()
            if isinstance(item, list):
                inside.extend(reversed(item))
            elif key != "cluster.setup":  # shell lines may hold anything
                yield key, item
