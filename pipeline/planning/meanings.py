"""What the choices and settings of `conf/` mean, in the words of its files, for `launch --help`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from pipeline.planning.conf import CONF
from pipeline.planning.folder import choices

WIDTH = 96  # of a meaning
GROUP = re.compile(r"^  - (\w+): (\w+) +# (.*)$")  # in the defaults of config.yaml


def register() -> None:
    """Let files of `conf/` say ${meanings:…} and ${explained:…}."""
    OmegaConf.register_new_resolver("meanings", _choices, replace=True)
    OmegaConf.register_new_resolver("explained", _settings, replace=True)


def _choices(sources: ListConfig) -> str:
    """Return each group with its meaning, and its choices with theirs."""
    folder = _folder(sources)
    lines = []
    for group, default, meaning in _groups():
        lines.append(f"{group:12} {meaning}")
        for choice in sorted(choices(group, folder)):
            mark = f"{choice} (default)" if choice == default else choice
            told = next(_comment(_file(group, choice, folder)), "")
            told = textwrap.shorten(told, WIDTH, placeholder=" …")
            lines.append(f"  {mark:21} {told}".rstrip())
    return _literal("\n".join(lines))


def _settings(made: DictConfig, sources: ListConfig) -> str:
    """Return the files of the choices made, each as a section, and the settings of config.yaml."""
    folder, lines = _folder(sources), []
    for group, *_ in _groups():
        if (choice := made.get(group)) and group != "experiment":
            text = _file(group, choice, folder).read_text().splitlines()
            lines += [f"{group}:   # of {group}={choice}", *(f"  {line}" for line in _body(text))]
    return _literal("\n".join([*lines, *_own()]))


def _literal(text: str) -> str:
    return text.replace("$", "$$")  # for the template of Hydra's help


def _groups() -> Iterator[tuple[str, str, str]]:
    """Yield each group of `conf/` with its default and what it is."""
    for line in (CONF / "config.yaml").read_text().splitlines():
        if found := GROUP.match(line):
            yield found[1], found[2], found[3]


def _own() -> list[str]:
    """Return the settings in config.yaml itself, with their comments."""
    text = (CONF / "config.yaml").read_text()
    return text.partition("\n\n")[2].partition("\n\nhydra:")[0].splitlines()


def _folder(sources: ListConfig) -> str | None:
    return next((s.path for s in sources if s.provider == "command-line"), None)


def _file(group: str, choice: str, folder: str | None) -> Path:
    own = Path(folder or CONF) / group / f"{choice}.yaml"
    return own if own.exists() else CONF / group / f"{choice}.yaml"


def _comment(path: Path) -> Iterator[str]:
    """Yield the first line of the comment at the top of a file, if there is one."""
    for line in path.read_text().splitlines():
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
