"""Check augmentation policies: the names of torchvision's, and timm's strings."""

from __future__ import annotations

import re
from collections.abc import Iterator

POLICIES = ("randaugment", "autoaugment", "trivialaugment")  # of torchvision
VALID = (
    f"{', '.join(POLICIES)}, or a string of timm's: rand-m9-mstd0.5-inc1, augmix-m3-w3, original, "
    "originalr, v0, v0r, 3a"
)
TIMM_POLICY = re.compile(
    r"rand(-(m\d+|n[1-9]\d*|p[01](\.\d+)?|mstd\d+(\.\d+)?|mmax\d+|inc[01]|t(weights|3aw?)))*"
    r"|augmix(-(m\d+|w[1-9]\d*|d[1-9]\d*|b[01]|a[1-9]\d*|mstd\d+(\.\d+)?))*"
    r"|(originalr?|v0r?|3a)(-mstd\d+(\.\d+)?)?"
)
PART = re.compile(r"([a-z]+)(\d[\d.]*)")
STRONGEST = 10  # magnitude to which timm limits, unless mmax allows more
MOST = {"mmax": 30, "mstd": 1000, "n": 15, "p": 1, "w": 10, "d": 10, "a": 100}
WEIGHTED = {"tweights": 15, "t3aw": 14}  # operations, of which each is taken once


def wrong(policy: str) -> Iterator[str]:
    """Yield the parts of a policy string that timm would limit, ignore or fail on."""
    kind, *parts = policy.split("-")
    numbers = {match[1]: float(match[2]) for part in parts if (match := PART.fullmatch(part))}
    names = [match[1] if (match := PART.fullmatch(part)) else part[0] for part in parts]
    if twice := [name for name in names if names.count(name) > 1]:
        yield f"{policy} says {twice[0]} twice; say it once"
    most = MOST | {"m": numbers.get("mmax", STRONGEST)}
    for part in parts:
        if part in WEIGHTED:
            most["n"] = WEIGHTED[part]
    for name, number in numbers.items():
        if number > most.get(name, number):
            cure = "" if name != "m" or kind != "rand" else ", or raise that by mmax, as -mmax30"
            yield f"{policy}: {name}{number:g} is too large; use at most {name}{most[name]:g}{cure}"
    for name in ("p", "mmax"):
        if numbers.get(name) == 0:
            yield f"{policy}: {name}0 leaves images as they are; leave it out"
