"""Read the GPU's name from its driver, and sample its clocks, power and temperature."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

NAMED = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.mem")
SAMPLED = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu")
EVERY = 1000  # milliseconds between two samples


def named() -> dict[str, str]:
    """Return the card and its limits; an empty dict if no driver answers."""
    return _driver_answer(NAMED)


def now() -> dict[str, str]:
    """Return the current clocks, power and temperature; an empty dict if no driver answers."""
    return _driver_answer(SAMPLED)


def _driver_answer(fields: tuple[str, ...]) -> dict[str, str]:
    try:
        done = subprocess.run(_query(fields), capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    rows = done.stdout.strip().splitlines() if done.returncode == 0 else []
    return dict(zip(fields, rows[0].split(", "), strict=False)) if rows else {}


@contextmanager
def sampled() -> Iterator[dict[str, Any]]:
    """Yield a dictionary that gets lowest, median and highest of each value at the end."""
    summary: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+") as lines:
        driver = _started([*_query(SAMPLED, "nounits"), f"--loop-ms={EVERY}"], lines)
        try:
            yield summary
        finally:
            if driver:
                driver.kill()
                driver.wait()
            lines.seek(0)
            summary |= _spread([line.split(", ") for line in lines.read().splitlines()])


def _started(words: list[str], output: IO[str]) -> subprocess.Popen | None:
    try:
        return subprocess.Popen(words, stdout=output, stderr=subprocess.DEVNULL)
    except OSError:
        return None


def _query(fields: tuple[str, ...], *also: str) -> list[str]:
    form = ",".join(["csv", "noheader", *also])
    return ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}", f"--format={form}"]


def _spread(rows: list[list[str]]) -> dict[str, Any]:
    found = {}
    for place, field in enumerate(SAMPLED):
        values = [float(row[place]) for row in rows if len(row) > place and _number(row[place])]
        if values:
            found[field] = [min(values), statistics.median(values), max(values)]
    return found


def _number(text: str) -> bool:
    return text.strip().replace(".", "", 1).isdigit()
