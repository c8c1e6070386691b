"""Write `report.html`: one file that shows a run, opens offline, and can be sent by mail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.display.outside import visible


def write_report(run: Path) -> Path:
    """Write `report.html` of a run directory from the files that its stages have written so far."""
    from pipeline.records import rundir
    from pipeline.report import figures, run_data, shipping, tables

    story = run_data.read(run)
    path = run / "report.html"
    drawn = {**figures.training(story), **shipping.figures(story)}
    page = render("report/template.html", story=story, figures=drawn, tables=tables.all_of(story))
    rundir.write_text(path, page)
    return path


def render(template: str, **values: Any) -> str:
    """Render a template below `pipeline/`; all values are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline", "."),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def _shown(value: Any) -> Any:
    """Return a value as a page shows it: control characters in texts become escapes."""
    from markupsafe import Markup

    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
