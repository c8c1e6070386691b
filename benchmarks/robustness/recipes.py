"""Kill a training of each recipe once, and compare it bit by bit with an undisturbed one.

The recipes are a table in which each pair of values occurs: of optimizer, schedule, method, loader,
number of processes, and the other factors of a recipe. Each recipe trains a tiny network. One of
its processes, or all of them, are killed by SIGKILL at a random moment, and the training is started
again. Then weights, history and growth must equal those of the undisturbed training. FILE is
written after each row.

    python -m benchmarks.recipes --json benchmarks/results/recipes.json
"""

import argparse
import itertools
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import evidence
from benchmarks.chaos import copy_question, differences
from benchmarks.forked import Forked
from benchmarks.killing import VICTIMS
from pipeline.planning import named_run, sweep
from pipeline.planning.plan import make_plan
from pipeline.planning.planned_stage import PlannedStage
from pipeline.records import rundir

SETTINGS = (
    "stage.run=[prep,train]", "tracking=disabled", "data=synthetic", "data.images=160",
    "data.classes=4", "data.height=16", "data.width=16", "data.image_size=16",
    "model.widths=[[4],[8]]", "train.batch_size=32", "train.epochs=6", "train.lr=0.01",
    "train.warmup_epochs=0", "train.deterministic=true", "checkpoint.interval=3 steps",
)  # fmt: skip
GROWS = ("method.adjust_interval=1", "method.last_adjust_epoch=4")
TABLE: dict[str, dict[str, tuple[str, ...]]] = {
    "optimizer": {
        name: (f"train.optimizer={name}",)
        for name in ("sgd", "adamw", "lamb", "muon", "adafactor", "lion")
    },
    "schedule": {
        name: (f"train.schedule={name}", *more)
        for name, more in {
            "cosine": (), "linear": (), "tanh": (), "constant": (), "onecycle": (), "wsd": (),
            "polynomial": ("train.decay_power=2",), "step": ("train.decay_epochs=[2,4]",),
            "exponential": ("train.decay_epochs=2",), "plateau": ("train.decay_epochs=1",),
            "restarts": ("train.cycle_epochs=2",), "rsqrt": ("train.warmup_epochs=1",),
        }.items()
    },
    "method": {
        "plain": ("method=plain",),
        "dyrep": ("method=dyrep", "method.calibration_batches=2", "method.cut_ratio=10", *GROWS),
        "linear": ("method=dyrep", "method.form=linear", *GROWS),
        "grow": ("method=grow", "method.max_cost=3", *GROWS),
    },
    "loader": {name: (f"data.loader={name}",) for name in ("memory", "dali", "torch")},
    "processes": {n: (f"cluster.processes_per_node={n}",) for n in ("1", "2")},
    "more": {
        "average": ("train.ema=0.9", "train.ema_warmup=true"),
        "accumulate": ("train.accumulate=2", "train.clip_grad=1"),
        "layers": ("train.layer_decay=0.8", "train.head_lr=0.02", "train.decay_norms=true"),
        "best": ("train.ship=best", "train.patience=3"),
        "repeats": ("train.augment.repeats=2", "train.augment.mixup=0.2"),
        "recalibrate": ("train.recalibrate=2", "train.ema=0.9"),
    },
}  # fmt: skip
TRIES = 5  # tries to kill, because a short training may end before it is killed
START = 0.3  # seconds that a training takes to begin

ORDER = [(factor, value) for factor, values in TABLE.items() for value in values]

Row = dict[str, str]
Pair = frozenset[tuple[str, str]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--rows", type=int, help="only the first rows of the table")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    table = covering()
    random.Random(options.seed).shuffle(table)
    found: list[dict] = []
    with tempfile.TemporaryDirectory(prefix="recipes-") as folder:
        for row in trained(Path(folder), table[: options.rows], options.seed):
            found.append(row)
            if options.json:
                evidence.write(options.json, report(found, options.seed))
    show(found)
    return 1 if any(row["differences"] for row in found) else 0


def report(found: list[dict], seed: int) -> dict:
    """Return the rows that were trained, and their share of the table."""
    whole = covering()
    done = [{factor: row[factor] for factor in TABLE} for row in found]
    return {
        "rows": len(found), "rows_of_table": len(whole),
        "pairs": len(pairs(done)), "pairs_of_table": len(pairs(whole)),
        "kills": sum(bool(row["kill"]) for row in found),
        "equal": sum(not row["differences"] for row in found),
        "seed": seed, "table": found,
    }  # fmt: skip


def covering() -> list[Row]:
    """Return rows, chosen greedily, in which each pair of values of two factors occurs."""
    left = pairs([dict(zip(TABLE, row, strict=True)) for row in itertools.product(*TABLE.values())])
    rows: list[Row] = []
    while left:
        row = dict(min(left, key=lambda pair: sorted(map(ORDER.index, pair))))
        for factor in TABLE:
            if factor not in row:
                row[factor] = _newest(row, factor, left, rows)
        rows.append({factor: row[factor] for factor in TABLE})
        left -= pairs([row])
    return rows


def _newest(row: Row, factor: str, left: set[Pair], rows: list[Row]) -> str:
    """Return the value with most missing pairs; of several, the one with the fewest rows."""
    used = Counter(row[factor] for row in rows)
    return max(
        TABLE[factor], key=lambda value: (len(pairs([row | {factor: value}]) & left), -used[value])
    )


def pairs(rows: list[Row]) -> set[Pair]:
    return {frozenset(pair) for row in rows for pair in itertools.combinations(row.items(), 2)}


def trained(folder: Path, table: list[Row], seed: int) -> Iterator[dict]:
    """Train each row twice, once with a kill; yield the rows with what differs."""
    for number, row in enumerate(table):
        prep, train = question(folder / "undisturbed", row)
        finish(prep.dir)  # all recipes share these images
        yield judged(row, train.dir, seed + number)


def question(root: Path, row: Row) -> list[PlannedStage]:
    """Write the questions of the stages of a recipe, as a launch does; return the stages."""
    words = [word for factor, value in row.items() for word in TABLE[factor][value]]
    config, *_ = named_run.settle(*sweep.single([*SETTINGS, *words, f"root={root}"]))
    steps = make_plan(config)[:2]
    for step in steps:
        step.dir.mkdir(parents=True, exist_ok=True)
        named_run.write_question(step)
        named_run.write_where(step, config)
    return steps


def judged(row: Row, stage: Path, seed: int) -> dict:
    """Return a row with its kill, and the differences after it."""
    seconds = finish(stage)
    chance = random.Random(seed)
    for _ in range(TRIES):
        root = stage.parents[1].with_name(f"disturbed-{seed}")
        disturbed = copy_question(stage, root)
        kill = killed(disturbed, seconds, chance)
        finish(disturbed)
        differs = differences(stage, disturbed)
        shutil.rmtree(root)
        if kill or differs:
            break
    print(f"{' '.join(row.values())}: {kill} {differs or 'equal'}", flush=True)
    return {**row, "kill": kill, "differences": differs}


def killed(stage: Path, seconds: float, chance: random.Random) -> dict | None:
    """Begin a training and kill it within some seconds; return a row about the kill, or None."""
    attempt = Forked(stage)
    time.sleep(chance.uniform(START, seconds))
    while attempt.process.poll() is None:
        if happened := attempt.strike(chance.choice(VICTIMS), signal.SIGKILL):
            return happened
    return None


def finish(stage: Path) -> float:
    """Run a stage to its end, unless it is finished; return the seconds that this took.

    Raises:
        RuntimeError: the stage ended without a result.
    """
    begun = time.monotonic()
    if not (stage / rundir.RESULT).exists():
        Forked(stage).process.wait()
    if not (stage / rundir.RESULT).exists():
        raise RuntimeError((stage / "logs" / "chaos.log").read_text()[-2000:])
    return time.monotonic() - begun


def show(found: list[dict]) -> None:
    table = Table(*TABLE, "killed at step", "different")
    for row in found:
        step = str(row["kill"]["step"]) if row["kill"] else "never"
        table.add_row(*(row[factor] for factor in TABLE), step, ", ".join(row["differences"]))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
