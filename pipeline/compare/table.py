"""Print the answer in a terminal, as narrow tables that are legible in 80 columns.

Each group has a number. The first table shows the labels in full. The other tables cut labels that
are too long, so that a group takes one line; its number identifies it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from pipeline.compare.groups import Answer, Group
from pipeline.compare.statistics import Mean, Pairs
from pipeline.config.base import written
from pipeline.display.outside import line
from pipeline.display.terminal import Terminal, bold
from pipeline.report.run_data import short

SHOWN = 40  # groups in a table, at most; --json and --html have all of them


def show(answer: Answer) -> None:
    """Print an answer."""
    console = Terminal()
    groups = answer.groups[:SHOWN]
    console.print(bold(answer.title), f" {headline(answer)}")
    if groups:
        console.print(_accuracy(groups))
        if answer.baseline:
            console.print(_tests(groups, answer.baseline))
        console.print(_costs(groups, answer))
        console.print(_deployment(groups))
    if len(answer.groups) > SHOWN:
        console.print(f"… and {len(answer.groups) - SHOWN} more groups: --json FILE, --html FILE")
    if answer.left_out:
        console.print(_left_out(answer.left_out[:SHOWN]))
        if len(answer.left_out) > SHOWN:
            console.print(f"… and {len(answer.left_out) - SHOWN} more")
    if answer.differ:
        console.print(_differ(answer, groups))
    for note in answer.notes:
        console.print(f"note: {note}", style="yellow")
    for row in answer.left_out:  # whole lines, so that the paths in them can be copied
        if row["state"] == "damaged":
            console.print(f"note: {row['run']}: {row['why']}", style="yellow", soft_wrap=True)


def headline(answer: Answer) -> str:
    """Return the first line: dataset, numbers of runs and groups, time, runs left out."""
    count = sum(len(group.runs) for group in answer.groups)
    runs = f"{count} run{'s' * (count != 1)}"
    groups = f"{len(answer.groups)} group{'s' * (len(answer.groups) != 1)}"
    parts = [answer.data, f"{runs} counted in {groups}"]
    times = [group.hours for group in answer.groups if group.hours]
    parts += [f"{sum(t.mean * t.n for t in times):.3g} {answer.time_unit}"] if times else []
    parts += [f"{len(answer.left_out)} left out"] if answer.left_out else []
    return " · ".join(filter(None, parts))


def brief(label: str) -> str:
    """Return the label of a group for the head of a column: `train.lr=0.1` becomes `lr=0.1`."""
    return re.sub(r"(?<!\S)\w+\.(?=[\w.]+=)", "", label)


def interval(value: Mean | None, digits: int = 2) -> str:
    """Return a mean with half the width of its interval."""
    if value is None:
        return "–"
    half = "" if value.half is None else f" ± {value.half:.{digits}f}"
    return f"{value.mean:.{digits}f}{half}"


def difference(pairs: Pairs) -> str:
    """Return a difference with half the width of its interval."""
    if pairs.difference is None:
        return "–"
    half = "" if pairs.high is None else f" ± {pairs.high - pairs.difference:.2f}"
    return f"{pairs.difference:+.2f}{half}"


def hours(value: Mean | None) -> str:
    """Return a time with three digits."""
    return "–" if value is None else f"{value.mean:.3g}"


def work(value: Mean | None) -> str:
    """Return a cost in plain steps, with three digits."""
    return "–" if value is None else short(value.mean)


def probability(p: float | None) -> str:
    """Return a p-value as a person reads it: three decimals, or `<0.001`."""
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def ratio(group: Group, size: str) -> str:
    """Return a size of the fused network, and of the unfused one if it differs."""
    after, before = group.sizes.get(size), group.sizes.get(f"{size}_unfused")
    if after is None:
        return "–"
    return short(after) + (f" ({short(before)})" if before and before != after else "")


def latencies(group: Group) -> str:
    """Return the fused network's median latencies by batch size, and whether they are noisy."""
    if not group.latency_ms:
        return "–"
    text = ", ".join(
        f"{f'{ms:,.0f}' if ms >= 100 else f'{ms:.3g}'} at {batch}"
        for batch, ms in group.latency_ms.items()
    )
    if not group.noisy:
        return text
    some = "" if group.noisy == len(group.runs) else f"{group.noisy} of {len(group.runs)} "
    return f"{text} ({some}noisy)"


def growth(group: Group) -> str:
    """Return the branches grown and cut per run, and the number of layers they grew on."""
    grown, cut = group.sizes.get("grown"), group.sizes.get("cut")
    if not grown and not cut:
        return "–"
    layers = f" on {len(group.layers)}" if group.layers else ""
    return f"{grown or 0:.3g} / {cut or 0:.3g}{layers}"


def _table(title: str, *columns: str, cut: bool = False) -> Table:
    """Return a table; with `cut`, only the first and the last column shrink if room is short."""
    above = Text.assemble("\n", bold(title))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, title=above, title_justify="left")
    for number, column in enumerate(columns):
        right = column.startswith(">")
        table.add_column(
            column.removeprefix(">"),
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=right or (cut and 0 < number < len(columns) - 1),
            min_width=12 if number == 0 else None,
        )
    return table


def _numbered(groups: list[Group]) -> list[tuple[str, Group]]:
    """Return each group with its number and label, which are the same in all tables."""
    width = len(str(len(groups)))
    return [(f"{n:{width}} {group.label}", group) for n, group in enumerate(groups, start=1)]


def _cut(groups: list[Group]) -> Iterator[tuple[Text, Group]]:
    """Yield the groups as `_numbered` does; a label too long for its column ends in …."""
    for label, group in _numbered(groups):
        yield Text(line(label), no_wrap=True, overflow="ellipsis"), group


def _accuracy(groups: list[Group]) -> Table:
    table = _table(
        "Which is better: mean ± 95 % interval over seeds",
        "group", ">n", ">top-1 fused", ">top-1 unfused", ">val loss",
    )  # fmt: skip
    for label, group in _numbered(groups):
        table.add_row(
            label, str(group.top1.n), interval(group.top1),
            interval(group.unfused_top1), interval(group.val_loss, 3),
        )  # fmt: skip
    return table


def _tests(groups: list[Group], baseline: str) -> Table:
    table = _table(
        f"Is it real: paired by seed (± 95 %), against {baseline}",
        "group", ">pairs", ">difference", ">p", ">p (Holm)", "verdict", cut=True,
    )  # fmt: skip
    for label, group in _cut(groups):
        if not (pairs := group.versus):
            continue
        table.add_row(
            label, str(len(pairs.seeds)), difference(pairs),
            probability(pairs.p), probability(pairs.p_holm), _coloured(pairs.verdict),
        )  # fmt: skip
    return table


def _coloured(verdict: str) -> Text:
    return Text(verdict, {"better": "green", "worse": "red"}.get(verdict, ""))


def _costs(groups: list[Group], answer: Answer) -> Table:
    table = _table(
        "What training costs: ★ better, by a paired test, than all that cost no more",
        "group", f">{answer.cost_unit}", "", f">{answer.time_unit}", "grown / cut", cut=True,
    )  # fmt: skip
    for label, group in _cut(groups):
        star = "★" if group.pareto else ""
        table.add_row(label, work(group.cost), star, hours(group.hours), growth(group))
    return table


def _deployment(groups: list[Group]) -> Table:
    table = _table(
        "What the fused network costs (unfused)",
        "group", ">parameters", ">FLOPs", "ms at batch", cut=True,
    )  # fmt: skip
    for label, group in _cut(groups):
        table.add_row(label, ratio(group, "parameters"), ratio(group, "flops"), latencies(group))
    return table


def _left_out(rows: list[dict[str, str]]) -> Table:
    table = _table("Left out of every mean", "run", "state", "why")
    for row in rows:
        why = "see the note" if row["state"] == "damaged" else row["why"]
        table.add_row(row["run"], row["state"], why)
    return table


def _differ(answer: Answer, groups: list[Group]) -> Table:
    table = _table("Which settings differ", "setting", "values (– where there is no such setting)")
    for key, values in answer.differ.items():
        distinct = dict.fromkeys(written(values.get(group.label, "–")) for group in groups)
        table.add_row(key, " | ".join(distinct).replace('","', '", "'))  # blanks let a list fold
    return table
