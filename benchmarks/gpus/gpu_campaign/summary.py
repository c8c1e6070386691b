"""Compare the results with the targets: OUT/summary.json, OUT/summary.md and a table.

The targets are in this module alone; every other number is read from the files of the sections.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_campaign.report import SECTIONS, read
from pipeline.records import disk

NOT_YET = "not measured"
ALL = "+channels_last+compile"
LAST = "+channels_last"
Results = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A target; `find` returns the values from a section's results, by the subject of each."""

    section: str
    what: str
    find: Callable[[Results], dict[str, float | None]]
    least: float | None = None
    most: float | None = None

    def reached(self, value: float) -> bool:
        """Whether a value meets the target."""
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )

    @property
    def bound(self) -> str:
        """The target in readable form."""
        return f"≥ {self.least:,g}" if self.least is not None else f"≤ {self.most:,g}"


def _faster(one: str, other: str) -> Callable[[Results], dict[str, float | None]]:
    """Return a function that finds the speed of a loop relative to another, for each network."""

    def find(results: Results) -> dict[str, float | None]:
        found = {}
        for name, row in results.items():
            key = f"{one} / {other}"
            if key in row.get("faster", {}):
                found[name] = row["faster"][key]["median"]
        return found

    return find


def _rate(network: str) -> Callable[[Results], dict[str, float | None]]:
    """Return a function that finds the images per second of our fastest loop on a network."""

    def find(results: Results) -> dict[str, float | None]:
        rates = {
            loop: value["median"]
            for name, row in results.items()
            if name.split()[0] == network
            for loop, value in row["images_per_s"].items()
            if loop.startswith("ours")
        }
        best = max(rates, key=rates.__getitem__, default="")
        return {f"{network}: {best}": rates[best]} if best else {}

    return find


def _waits(results: Results) -> dict[str, float | None]:
    return {
        f"{name}: {loop}": (facts["host_waits"] or {}).get("per_step")
        for name, row in results.items()
        for loop, facts in row["loops"].items()
        if loop.startswith("ours")
    }


def _value(*path: str) -> Callable[[Results], dict[str, float | None]]:
    """Return a function that finds the number at a path in the results."""

    def find(results: Results) -> dict[str, float | None]:
        place: Any = results
        for key in path:
            place = place.get(key) if isinstance(place, dict) else None
        return {} if place is None else {"": float(place)}

    return find


def _each(*path: str) -> Callable[[Results], dict[str, float | None]]:
    """Return a function that finds the number at a path, in each result that has it."""

    def find(results: Results) -> dict[str, float | None]:
        return {
            name: value for name, row in results.items() for value in _value(*path)(row).values()
        }

    return find


TARGETS = (
    Target("steps", "ours / bare torch, all on", _faster(f"ours{ALL}", f"bare{ALL}"), least=0.95),
    Target("steps", "the same, not compiled", _faster(f"ours{LAST}", f"bare{LAST}"), least=0.95),
    Target("steps", "ours / timm's, all on", _faster(f"ours{ALL}", f"timm{ALL}"), least=1.0),
    Target("steps", "the same, not compiled", _faster(f"ours{LAST}", f"timm{LAST}"), least=1.0),
    Target("steps", "ours, images/s at 224 px, batch 256", _rate("resnet50"), least=2800),
    Target("steps", "ours, images/s at 224 px, batch 256", _rate("resnet18"), least=9000),
    Target("steps", "waits for the GPU per step", _waits, most=0),
    Target("costs", "watching saliency, % of a step", _each("watching_percent"), most=1),
    Target("resume", "places that differ after kills", _each("differences"), most=0),
    Target("resume", "convolutions grown", _each("grown"), least=1),
    Target("whole", "best top-1 of plain, %", _value("plain", "best_top1"), least=93),
    Target("checks", "tests/gpu that failed", _value("tests", "failed"), most=0),
)


def lines(out: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each target and subject: the value, and whether the target was met."""
    for target in TARGETS:
        found = read(out, target.section) or {}
        values = target.find(found.get("results", {}))
        aim = {"section": target.section, "target": target.what, "bound": target.bound}
        for name, value in (values or {"": None}).items():
            judged = value is not None and not found["small"]
            why = "in miniature" if value is not None else found.get("error", "")
            met = target.reached(value) if judged else None
            yield {**aim, "of": name, "found": value, "met": met, "why": why}


def write(out: Path) -> None:
    """Write summary.json and summary.md."""
    rows = list(lines(out))
    with disk.replacing(out / "summary.json") as temporary:
        temporary.write_text(json.dumps({"sections": _sections(out), "targets": rows}, indent=1))
    text = ["# What was found", "", *_lines(out), "", "| " + " | ".join(COLUMNS) + " |"]
    text += ["|---" * len(COLUMNS) + "|"]
    text += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    with disk.replacing(out / "summary.md") as temporary:
        temporary.write_text("\n".join(text) + "\n")


COLUMNS = ("section", "target", "of", "bound", "found", "met")


def _cells(row: dict[str, Any]) -> list[str]:
    found = NOT_YET if row["found"] is None else f"{row['found']:,.4g}"
    met = {True: "yes", False: "NO", None: row["why"][:80] or "—"}[row["met"]]
    return [row["section"], row["target"], row["of"], row["bound"], found, met]


def _sections(out: Path) -> dict[str, Any]:
    kept = ("date", "commit", "small", "seconds", "error", "skipped")
    facts = {name: read(out, name) for name in SECTIONS}
    return {
        name: {key: section[key] for key in kept if key in section}
        | {"device": section.get("machine", {}).get("device")}
        for name, section in facts.items()
        if section
    }


def _lines(out: Path) -> Iterator[str]:
    """Yield a line per section: its time, its machine, and missing results."""
    for name, row in _sections(out).items():
        small = ", in miniature: its numbers mean nothing" if row.get("small") else ""
        yield f"- {name}: {row['date']}, {row['device']}, commit {row.get('commit')}{small}"
        if "error" in row:
            yield f"  - {row['error']}"
        yield from (f"  - without {what}: {why}" for what, why in row["skipped"].items())


def show(out: Path) -> None:
    """Print the table, or the text of summary.md if rich is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        print((out / "summary.md").read_text())
        return
    table = Table(*COLUMNS, box=None)
    for row in lines(out):
        table.add_row(*_cells(row))
    console = Console(width=150)
    for line in _lines(out):
        console.print(line, markup=False, highlight=False)
    console.print(table)
