"""Explain choices and settings in `launch --help`, with the comments of the files of `conf/`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from pipeline.planning.conf import CONF
from pipeline.planning.folder import choices

WIDTH = 96  # characters of an explanation
GROUP = re.compile(r"^  - (\w+): (\w+) +# (.*)$")  # an entry of the defaults list in config.yaml


def register() -> None:
    """Register the resolvers ${meanings:…} and ${explained:…} that files of `conf/` use."""
    OmegaConf.register_new_resolver("meanings", _choices, replace=True)
    OmegaConf.register_new_resolver("explained", _settings, replace=True)


def _choices(sources: ListConfig) -> str:
    """Return each group with its explanation, and below it its choices with theirs."""
    folder = _folder(sources)
    lines = []
    for group, default, meaning in _groups():
        lines.append(f"{group:12} {meaning}")
        for choice in sorted(choices(group, folder)):
            mark = f"{choice} (default)" if choice == default else choice
            comment = next(_comment(_file(group, choice, folder)), "")
            comment = textwrap.shorten(comment, WIDTH, placeholder=" …")
            lines.append(f"  {mark:21} {comment}".rstrip())
    return _literal("\n".join(lines))


def _settings(made: DictConfig, sources: ListConfig) -> str:
    """Return the files of the chosen choices, one section each, and the settings of config.yaml."""
    folder, lines = _folder(sources), []
    for group, *_ in _groups():
        if (choice := made.get(group)) and group != "experiment":
            text = _file(group, choice, folder).read_text(encoding="utf-8").splitlines()
            lines += [f"{group}:   # of {group}={choice}", *(f"  {line}" for line in _body(text))]
    return _literal("\n".join([*lines, *_own()]))


def _literal(text: str) -> str:
    return text.replace("$", "$$")  # Hydra's help is a template, in which $ has a meaning


def _groups() -> Iterator[tuple[str, str, str]]:
    """Yield each group of `conf/` with its default and its explanation."""
    for line in (CONF / "config.yaml").read_text(encoding="utf-8").splitlines():
        if found := GROUP.match(line):
            yield found[1], found[2], found[3]


def _own() -> list[str]:
    """Return the settings that config.yaml itself holds, with their comments."""
    text = (CONF / "config.yaml").read_text(encoding="utf-8")
    return text.partition("\n\n")[2].partition("\n\nhydra:")[0].splitlines()


def _folder(sources: ListConfig) -> str | None:
    return next((s.path for s in sources if s.provider == "command-line"), None)


def _file(group: str, choice: str, folder: str | None) -> Path:
    own = Path(folder or CONF) / group / f"{choice}.yaml"
    return own if own.exists() else CONF / group / f"{choice}.yaml"


def _comment(path: Path) -> Iterator[str]:
    """Yield the first line of the comment at the top of a file, if there is one."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if line.startswith("# "):
            yield line.removeprefix("# ").rstrip(".,")
        return


def _body(lines: list[str]) -> Iterator[str]:
    """Yield the lines of a file below the comment at its top."""
    begun = False
    for line in lines:
        begun = begun or not line.startswith("#")
        if begun:
            yield line
