"""report.html: one file that shows a run, opens offline, and can be mailed to a colleague."""

from __future__ import annotations

from pathlib import Path


def write_report(run: Path) -> Path:
    """Write `report.html` of a run directory from whatever its stages have left so far."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from pipeline import rundir
    from pipeline.report import figures, story

    told = story.read(run)
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("template.html").render(
        story=told, figures=figures.all_of(told)
    )
    path = run / "report.html"
    rundir.write_text(path, page)
    return path
