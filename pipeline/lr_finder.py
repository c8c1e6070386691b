"""Suggest a learning rate by a short training: `python -m pipeline.lr_finder RUN`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.display import exits
from pipeline.display.errors import DONE, UserError
from pipeline.display.outside import say
from pipeline.records import named, outfile, rundir

if TYPE_CHECKING:
    from markupsafe import Markup

    from pipeline.config import Config
    from pipeline.training.ramp import Found

LEAST = 1e-9  # rate that `--low` and `--high` take, and its reciprocal the largest
MOST = 100_000  # steps
HOW = (
    "the smoothed loss falls fastest there, per factor of the learning rate; it is lowest at "
    "{lowest:.2g}, where a training is close to diverging"
)


def main(arguments: list[str] | None = None) -> int:
    """Suggest a learning rate."""
    parser = named.parser(
        "lr_finder",
        "Train the network of a run for some steps, from its start and on the images that its\n"
        "prep has prepared, while the learning rate rises. The run itself is only read.",
        "Exit codes: 0 done; 2 bad input, e.g. nothing was prepared, or the loss does not fall.",
    )
    parser.add_argument("run", metavar="RUN", help="the name of a run whose prep is done")
    parser.add_argument(
        "--steps", type=named.count, default=200, help="of the short training (default: 200)"
    )
    parser.add_argument("--low", type=_rate, default=1e-5, help="the first rate (default: 1e-5)")
    parser.add_argument("--high", type=_rate, default=10.0, help="the last rate (default: 10)")
    parser.add_argument("--html", type=Path, metavar="FILE",
                        help="the page with the curve (default: lr-RUN.html)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers as JSON")
    options = parser.parse_args(arguments)
    return exits.ending(lambda: _find(options))


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not LEAST <= value <= 1 / LEAST:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a learning rate; use a number from {LEAST:g} to {1 / LEAST:g}"
        )
    return value


def _find(options: argparse.Namespace) -> int:
    from pipeline.planning.named_run import frozen

    if options.low >= options.high:
        raise UserError(f"--low {options.low:g} is not below --high {options.high:g}")
    if options.steps < 20:
        raise UserError(f"--steps {options.steps} are too few to see a loss fall; use at least 20")
    if options.steps > MOST:
        raise UserError(f"--steps {options.steps} are no short training; use at most {MOST:,}")
    page = options.html or Path(f"lr-{options.run}.html")
    outfile.check(options.json, page)
    (run,) = named.find(options.root, [options.run])
    data = run / "prep" / "data"
    if not (data / rundir.MANIFEST).exists():
        cure = named.relaunch(options.root, run.name, "stage=prep")
        raise UserError(f"run {run.name} has no prepared images; `{cure}` makes them")
    config = frozen(run)
    found = _climb(config, data, options)
    outfile.write(page, _page(run.name, config, found))
    if options.json:
        outfile.write(options.json, rundir.to_json(dataclasses.asdict(found), indent=2) + "\n")
    say(f"train.lr={found.suggestion:.2g}: {HOW.format(lowest=found.lowest)}")
    say(f"the run has train.lr={config.train.lr:g}; the curve of {len(found.rates)} steps: {page}")
    return DONE


def _climb(config: Config, data: Path, options: argparse.Namespace) -> Found:
    from pipeline.custom import code
    from pipeline.training import ramp

    code.enable(config.model, options.root)
    rates = ramp.rise(options.low, options.high, options.steps)
    return ramp.judge(rates, ramp.climb(config, data, rates))


def _page(name: str, config: Config, found: Found) -> str:
    from pipeline.report import render

    return render(
        "report/lr_finder.html",
        name=name,
        config=config,
        found=found,
        how=HOW.format(lowest=found.lowest),
        figure=_curve(found),
    )


def _curve(found: Found) -> Markup:
    """Draw the loss of each step and the smoothed loss over the learning rate."""
    import matplotlib
    from matplotlib.ticker import FuncFormatter

    from pipeline.report.canvas import BLUE, GREY, ORANGE, STYLE, Curve, canvas, svg

    with matplotlib.rc_context(STYLE):
        figure, axes = canvas("Loss by learning rate", xlabel="learning rate")
        axes.plot(found.rates, found.losses, color=GREY, lw=0.7, label="step")
        axes.plot(found.rates, found.smoothed, color=BLUE, label="smoothed")
        axes.axvline(found.suggestion, color=ORANGE, lw=1.2, ls="--", label="suggestion")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
        low, high = min(found.smoothed), max(found.smoothed[: 1 + len(found.smoothed) // 2])
        axes.set_ylim(low - 0.1 * (high - low), high + 0.3 * (high - low))
        axes.legend(loc="lower left")
        curve = Curve("smoothed loss", BLUE, found.rates, found.smoothed)
        return svg(figure, "Loss by learning rate, with the suggestion", [curve])


if __name__ == "__main__":
    sys.exit(main())
