"""Report the finished runs: the choice of rates, the arms against plain, and a figure."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.growth_study import plan
from benchmarks.growth_study.arms import ARMS
from benchmarks.growth_study.networks import NETWORKS
from benchmarks.growth_study.plan import CHOOSING, JUDGING, Rows
from benchmarks.growth_study.shelf import Run, Shelf
from pipeline.compare.statistics import Mean, Pairs, holm, mean, paired
from pipeline.display.errors import DONE

ENOUGH = 3  # so many seeds besides the choosing ones are enough for a table of their own
WIDE = 160  # width of a table in characters


@dataclass
class Judged:
    """An arm at its best rate.

    Args:
        settled: Whether all runs that choose the rate are finished.
        rows: The rows of its runs, by seed.
        versus: Comparison with plain at the same cost, on common seeds.
    """

    arm: str
    rate: float
    settled: bool
    rows: dict[int, dict[str, Any]]
    accuracy: Mean
    versus: Pairs | None = None

    def over(self, key: str) -> float:
        """Return the mean of a field of the rows."""
        return statistics.fmean(row[key] for row in self.rows.values())


def show(shelf: Shelf) -> int:
    """Print the tables and write the figure beside the rows."""
    rows, console = shelf.rows(), Console(width=WIDE)
    for network in NETWORKS:
        if any(run.network == network for run in rows):
            console.print(rates_table(rows, network))
            for seeds, title in settled(rows, network):
                console.print(arms_table(judge(rows, network, seeds), f"{network}: {title}"))
    console.print(f"{len(rows)} runs are made, {plan.missing(rows)} are missing.")
    if rows:
        figure = shelf.folder / "accuracy.svg"
        draw(rows).savefig(figure, metadata={"Date": None}, bbox_inches="tight")
        console.print(f"figure: {figure}")
    return DONE


def settled(rows: Rows, network: str) -> list[tuple[Sequence[int], str]]:
    """Return sets of seeds to judge by, each with a title."""
    first = "on the seeds that chose the rate (optimistic)"
    last = "on seeds that chose nothing"
    enough = [j for j in judge(rows, network, JUDGING) if j.accuracy.n >= ENOUGH]
    return [(CHOOSING, first), *([(JUDGING, last)] if enough else [])]


def judge(rows: Rows, network: str, seeds: Iterable[int]) -> list[Judged]:
    """Return the arms that have runs at their best rate so far, tested against plain."""
    found = []
    for arm in ARMS:
        chosen = plan.best_rate(rows, network, arm)
        rate = chosen or plan.best_so_far(rows, network, arm)
        if rate is None:
            continue
        runs = {seed: Run(network, arm, rate, seed) for seed in seeds}
        ours = {seed: rows[run] for seed, run in runs.items() if run in rows}
        accuracy = mean([row["accuracy"] for row in ours.values()])
        if accuracy:
            found.append(Judged(arm, rate, chosen is not None, ours, accuracy))
    plain = next((judged for judged in found if judged.arm == "plain"), None)
    for judged in found:
        if plain and judged is not plain:
            judged.versus = paired(_accuracies(judged.rows), _accuracies(plain.rows))
    holm([judged.versus for judged in found if judged.versus])
    return found


def _accuracies(rows: Mapping[int, dict[str, Any]]) -> dict[int, float]:
    return {seed: row["accuracy"] for seed, row in rows.items()}


def rates_table(rows: Rows, network: str) -> Table:
    """Return each arm's mean over the choosing seeds by rate, and its loss at a wrong rate."""
    tried = sorted({run.rate for run in rows if run.network == network})
    table = Table(title=f"{network}: % by learning rate, seeds {CHOOSING}; (n) of fewer seeds")
    for column in ("arm", *(f"{rate:g}" for rate in tried), "best", "at half", "at twice"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm in ARMS:
        cells = [_at_rate(rows, network, arm, rate) for rate in tried]
        if any(cells):
            table.add_row(ARMS[arm].what, *cells, *_robustness(rows, network, arm))
    return table


def _at_rate(rows: Rows, network: str, arm: str, rate: float) -> str:
    runs = [Run(network, arm, rate, seed) for seed in CHOOSING]
    there = [rows[run]["accuracy"] for run in runs if run in rows]
    if not there:
        return ""
    fewer = f" ({len(there)})" if len(there) < len(CHOOSING) else ""
    return f"{statistics.fmean(there):.2f}{fewer}"


def _robustness(rows: Rows, network: str, arm: str) -> list[str]:
    best = plan.best_rate(rows, network, arm)
    if best is None:
        return ["", "", ""]
    at_best = plan.choosing_mean(rows, network, arm, best)
    beside = [plan.choosing_mean(rows, network, arm, rate) for rate in (best / 2, best * 2)]
    return [f"{best:g}", *("" if m is None else f"{m - at_best:+.2f}" for m in beside)]


def arms_table(found: list[Judged], title: str) -> Table:
    """Return the arms, the best first, each compared with plain at the same cost."""
    table = Table(title=title)
    columns = ("arm", "rate", "seeds", "% (95 %)", "against plain (95 %)", "p", "p, Holm",
               "verdict", "steps", "cost", "changing", "last step", "parameters")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column in ("arm", "verdict") else "right")
    for judged in sorted(found, key=lambda judged: -judged.accuracy.mean):
        last = statistics.fmean(row["price"]["ratio"] for row in judged.rows.values())
        plain_steps = judged.over("plain_steps")
        table.add_row(
            ARMS[judged.arm].what, f"{judged.rate:g}{'' if judged.settled else ' ?'}",
            str(judged.accuracy.n),
            _interval(judged.accuracy.mean, judged.accuracy.half), *_versus(judged.versus),
            f"{judged.over('steps') / plain_steps:.2f}", f"{judged.over('cost') / plain_steps:.2f}",
            f"{judged.over('changing') / plain_steps:.2f}", f"{last:.2f}",
            f"{judged.over('parameters'):,.0f}",
        )  # fmt: skip
    table.caption = (
        "steps and cost over those of plain; changing: what growing and cutting took beside it, of "
        "the same; last step: what it cost, a plain one is 1; ?: rates are still to be tried"
    )
    return table


def _versus(pairs: Pairs | None) -> list[str]:
    if pairs is None or pairs.difference is None:
        return [""] * 4
    half = None if pairs.high is None else pairs.high - pairs.difference
    ps = ["" if p is None else f"{p:.3f}" for p in (pairs.p, pairs.p_holm)]
    return [_interval(pairs.difference, half, "+"), *ps, pairs.verdict]


def _interval(middle: float, half: float | None, sign: str = "") -> str:
    return f"{middle:{sign}.2f}" + ("" if half is None else f" ± {half:.2f}")


def draw(rows: Rows) -> Figure:
    """Draw accuracy against cost, the mean over all seeds that an arm has at its best rate."""
    networks = [name for name in NETWORKS if any(run.network == name for run in rows)]
    figure = Figure(figsize=(7 * len(networks), 4.5))
    axes = figure.subplots(1, len(networks), squeeze=False)
    for axis, network in zip(axes[0], networks, strict=True):
        for judged in judge(rows, network, (*CHOOSING, *JUDGING)):
            axis.plot(
                *_curve(judged), "o-", ms=3, label=f"{ARMS[judged.arm].what}, {judged.rate:g}"
            )
        axis.set(title=network, xlabel="cost / cost of the plain training",
                 ylabel="% of the first test images")  # fmt: skip
        axis.legend(frameon=False, fontsize=7)
    return figure


def _curve(judged: Judged) -> tuple[list[float], list[float]]:
    """Return the mean cost and accuracy at each point that all runs of an arm have."""
    points = list(zip(*(row["curve"] for row in judged.rows.values()), strict=False))
    plain_steps = judged.over("plain_steps")
    costs = [statistics.fmean(p["cost"] for p in point) / plain_steps for point in points]
    return costs, [statistics.fmean(p["accuracy"] for p in point) for point in points]
