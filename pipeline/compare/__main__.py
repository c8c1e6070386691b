"""Compare runs and print, write or publish the answer: `python -m pipeline.compare --group G`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.display import exits
from pipeline.display.errors import DONE, UserError
from pipeline.display.outside import say
from pipeline.records import caches, named, outfile


def main(arguments: list[str] | None = None) -> int:
    """Compare runs."""
    parser = named.parser(
        "compare",
        "Compare runs: seeds averaged, the best first, a paired test against a baseline, accuracy\n"
        "against cost. Only finished runs count; the others are listed with the reason.",
        "Exit codes: 0 done; 2 bad input, e.g. a group without runs, or of different datasets.",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names of runs")
    parser.add_argument("--group", metavar="G", help="all runs of a group instead")
    parser.add_argument(
        "--baseline", action="append", default=[], metavar="KEY=VALUE",
        help="the group to test against (default: method=plain if there is one such group); "
        "several must all hold",
    )  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all facts as JSON")
    parser.add_argument("--force", action="store_true", help="compare across datasets all the same")
    parser.add_argument(
        "--online", action="store_true", help="read from W&B, and make a report there"
    )
    options = parser.parse_args(arguments)
    return exits.ending(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> int:
    caches.set_folders(options.root)
    from pipeline.compare import collect, table
    from pipeline.compare.answer import answer

    if bool(options.runs) == (options.group is not None):
        raise UserError("name runs, or a group with --group G; `pipeline.status` lists the runs")
    outfile.check(options.json, options.html)
    if options.online:
        from pipeline.compare import online

        runs = online.read(options.runs, options.group)
    else:
        runs = collect.read(collect.select(options.root, options.runs, options.group, damaged=True))
    title = options.group or f"{len(runs)} run{'s' * (len(runs) != 1)}"
    result = answer(title, runs, options.baseline, options.force)
    table.show(result)
    if options.json:
        outfile.write(options.json, result.to_json() + "\n")
    if options.html:
        from pipeline.compare.page import render

        outfile.write(options.html, render(result, runs))
        say(f"page: {options.html}")
    if options.online:
        say(online.publish(result, options.group, options.runs))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
