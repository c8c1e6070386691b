"""Parse durations and ranges of numbers in SLURM's notation."""

from __future__ import annotations

import re


def minutes(text: str) -> float | None:
    """Return SLURM's notation of a duration (`1-00:00:00`, `5:00`) in minutes; None: no limit.

    `90` is 90 minutes, `5:00` five, `1:30:00` ninety, `2-12` two days and a half.

    Raises:
        ValueError: the text is not a duration.
    """
    if text in ("UNLIMITED", "INVALID", "NONE", "N/A", "NOT_SET", "Partition_Limit"):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise ValueError(f"'{text}' is not a duration; use minutes, HH:MM:SS or D-HH:MM:SS")
    days, first, second, third = (int(word or 0) for word in match.groups())
    if match[1] or match[4]:  # days-hours:minutes:seconds, or hours:minutes:seconds
        return days * 1440 + first * 60 + second + third / 60
    return first + second / 60


def numbers(*texts: str) -> set[int]:
    """Return the numbers in SLURM's notation `1-3,7`; a word such as NONE contains none."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", ",".join(texts)):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def elements(text: str) -> list[int]:
    """Return the elements of an array in SLURM's notation: `0-7`, or `3-199:2,205%10`.

    Raises:
        ValueError: SLURM cut the text (`0,3,7,…,.....`), or it is something else.
    """
    found: list[int] = []
    for part in text.partition("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if not match:
            raise ValueError(f"'{text}' does not name the elements of an array")
        first, last, step = match.groups()
        found += range(int(first), int(last or first) + 1, int(step or 1))
    return found
