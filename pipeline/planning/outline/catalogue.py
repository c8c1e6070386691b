"""List the networks that can be chosen by name: `python -m pipeline.launch --models [GLOB]`."""

from __future__ import annotations

import fnmatch

from pipeline.display.errors import DONE, UserError, nearest
from pipeline.display.outside import say
from pipeline.planning import outline


def show(glob: str = "*", *more: str) -> int:
    """Print the classifiers of timm and torchvision whose names match.

    Raises:
        UserError: no name matches, or the libraries cannot be queried.
    """
    if more:
        raise UserError(f"one pattern, in quotes: python -m pipeline.launch --models '{glob}'")
    answer = outline.ask(["--names"])
    if isinstance(answer, outline.Unknown):
        raise UserError(f"the models cannot be listed: {answer.why}; install the libraries")
    found = [(lib, name) for lib, names in answer.items() for name in fnmatch.filter(names, glob)]
    if not found:
        everything = sorted({name for names in answer.values() for name in names})
        raise UserError(f"no model is called '{glob}'; {nearest(glob, everything)}")
    for library, name in found:
        say(f"model={library} model.name={name}")
    counts = {library: sum(lib == library for lib, _ in found) for library in answer}
    sizes = ", ".join(f"{count:,} of {library}" for library, count in counts.items())
    say(f"{len(found):,} models: {sizes}")
    return DONE
