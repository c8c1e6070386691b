"""Derive settings that were not set.

The stem follows from the image size, growth from the epochs, and the epochs from a budget.

The rules run once, when a configuration is composed. A `Config`, config.yaml and all stages contain
the resulting values.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from pipeline.config.base import Values
from pipeline.config.data import PACKAGED

SMALL_IMAGE = 64  # pixels; up to this size the 7x7 stem and its pool leave too few pixels
INTERVALS = ((300, 15), (60, 5), (12, 3))  # least number of epochs: epochs between adjustments
SEEN = 256 / 224  # short side divided by the evaluated crop, as usual for ImageNet
WINDOWS = {"dyrep": (5, 6), "grow": (1, 2)}  # share of the epochs with adjustments
RULED = (
    ("data", "resize", "auto"),
    ("model", "small_stem", "auto"),
    ("method", "last_adjust_epoch", None),
    ("method", "adjust_interval", None),
    ("method", "cost", None),
    ("method", "start", None),
)
RESNETS = r"(wide_)?res(net|next)"


def settle(values: Values) -> Values:
    """Return the values with each `auto` or null that a rule decides replaced by its result."""
    return _with(values, by_rule(values))


def unsettle(values: Values) -> Values:
    """Undo values that equal the result of a rule, so that the rules can be applied again."""
    for section, key, free in RULED:
        loose = _with(values, {section: {key: free}})
        if key in values[section] and by_rule(loose)[section][key] == values[section][key]:
            values = loose
    return values


def by_rule(values: Values) -> dict[str, Values]:
    """Return the results of the rules, by section; their inputs may be of any type."""
    found: dict[str, Values] = {}
    model, method = (_section(values, name) for name in ("model", "method"))
    size = _section(values, "data").get("image_size")
    epochs = _section(values, "train").get("epochs")
    if (most := _most_epochs(_section(values, "train"))) is not None:
        found["train"] = {"epochs": most}
        epochs = most
    if data := _data(_section(values, "data")):
        found["data"] = data
    if model.get("small_stem") == "auto":
        small = isinstance(size, int) and size <= SMALL_IMAGE
        found["model"] = {"small_stem": small and has_small_stem(model)}
    if method.get("kind") in WINDOWS:
        found["method"] = _window(method, epochs if isinstance(epochs, int) else 1)
        if method.get("cost", "") is None:
            exact = bool(_section(values, "train").get("deterministic"))
            found["method"]["cost"] = "flops" if exact else "seconds"
    if method.get("start", "") is None:
        fresh = method.get("kind") == "grow" and model.get("pretrained") is None
        found.setdefault("method", {})["start"] = "identity" if fresh else "drawn"
    return found


def _data(data: Values) -> Values:
    """Return `resize` if it is auto, and `root` if a Debian package installed the data."""
    found: Values = {}
    size, packaged = data.get("image_size"), PACKAGED.get(str(data.get("name")))
    if data.get("resize") == "auto":
        found["resize"] = round(size * SEEN) if isinstance(size, int) else None
    if packaged and data.get("root", "") is None and Path(packaged).is_dir():
        found["root"] = packaged
    return found


def _most_epochs(train: Values) -> int | None:
    """Return the most epochs that a budget allows; no epoch costs less than a plain one."""
    plain_epochs = _section(train, "budget").get("plain_epochs")
    if not isinstance(plain_epochs, int | float) or not 1 <= plain_epochs < math.inf:
        return None  # not set, or refused by the schema
    return math.ceil(plain_epochs)


def has_small_stem(model: Values) -> bool:
    """Whether a network of torchvision or of this project can have a small stem."""
    if model.get("family") != "torchvision":
        return True
    return bool(re.match(RESNETS, str(model.get("name"))))


def _window(method: Values, epochs: int) -> Values:
    """Return the interval and the last epoch of adjustments, where they are not set.

    The published intervals are 15 for 600 epochs and 5 for 120, 100 and 90. The last adjustment is
    at 5/6 of the epochs, as published for ResNets (100 of 120), rounded down to whole intervals.
    With method=grow it is at half, because a branch that grows late cannot repay its cost.
    """
    interval, last = method.get("adjust_interval"), method.get("last_adjust_epoch")
    found = {}
    if interval is None:
        interval = next((n for least, n in INTERVALS if epochs >= least), max(1, epochs // 4))
        if isinstance(last, int):
            interval = min(interval, max(1, last))
        found["adjust_interval"] = interval
    if last is None and isinstance(interval, int) and interval > 0:
        share, of = WINDOWS[method["kind"]]
        found["last_adjust_epoch"] = interval * max(1, epochs * share // of // interval)
    return found


def _section(values: Values, name: str) -> Values:
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def _with(values: Values, changes: dict[str, Values]) -> Values:
    return {**values, **{name: {**values[name], **keys} for name, keys in changes.items()}}
