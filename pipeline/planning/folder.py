"""Check the user's folder of choices that add to those of `conf/`: `--config-dir`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from yaml import MarkedYAMLError
from yaml.reader import ReaderError

from pipeline.config.base import written
from pipeline.display.errors import UserError
from pipeline.planning.conf import CONF

Chain = tuple[tuple[str, str], ...]

LARGEST = 2**20  # bytes of a file of settings
MOST = 10_000  # values of a file of settings
HOLDS = "it holds e.g. experiment/NAME.yaml"
CHOOSE = "write e.g. '- override /train: cifar'"
WRITE = "write settings by name in it, KEY: VALUE"


def check(folder: str) -> None:
    """Refuse a folder that adds nothing, or that replaces a file of `conf/`.

    Raises:
        UserError: the folder is refused; the message says why.
    """
    option = f"--config-dir {folder}"
    if not Path(folder).is_dir():
        raise UserError(f"{option} is not a folder; {HOLDS}")
    files = [*Path(folder).glob("*.yaml"), *_files(folder)]
    for path in files:
        name = path.relative_to(folder)
        if (CONF / name).exists():
            raise UserError(f"{path}: {_choice(name)} is there already; give it another name")
    if not any(path.parent != Path(folder) for path in files):
        raise UserError(f"{option} has no settings in it; {HOLDS}")


def choices(group: str, folder: str | None) -> set[str]:
    """Return the names of the choices of a group, including those in the user's folder."""
    own = Path(folder) / group if folder else None
    nested = {str(file.relative_to(own).with_suffix("")) for file in _below(own)} if own else set()
    return {file.stem for file in (CONF / group).glob("*.yaml")} | nested


@cache
def check_choice(group: str, choice: str, folder: str, above: Chain = ()) -> None:
    """Refuse a user's file that Hydra would misread; check the files that it chooses, too.

    Args:
        group: the group of the choice, a folder below `folder`.
        choice: the name of the file, without `.yaml`.
        folder: the user's folder of choices.
        above: group and choice of the files that led to this one.

    Raises:
        UserError: the file holds no settings, or makes a choice in its own group.
    """
    path = Path(folder) / group / f"{choice}.yaml"
    if (CONF / group / path.name).exists() or not path.exists():
        return
    if not path.is_file():
        what = f"the settings of {group}={choice}"
        raise UserError(f"{path} is not a regular file; write {what} in it")
    content = _load(path)
    if idle := [key for key in content.get("hydra") or () if key != "sweeper"]:
        raise UserError(
            f"{path}: hydra.{idle[0]} would do nothing; leave it out; root=FOLDER says where "
            "everything is written"
        )
    defaults = content.get("defaults", [])
    if not isinstance(defaults, list | ListConfig):
        raise UserError(f"{path}: defaults is not a list; {CHOOSE}")
    chain = (*above, (group, choice))
    for named, chosen, overrides in _chosen(defaults, group, path):
        if (named, chosen) in chain:
            raise UserError(f"{path} includes {named}/{chosen}, which includes it; leave that out")
        if named == group and overrides:
            raise UserError(
                f"{path} chooses {group}={chosen}, which is ignored where {group}={choice} is "
                f"chosen; leave that out, or choose {group}={chosen}"
            )
        check_choice(named, chosen, folder, chain)


def _load(path: Path) -> DictConfig:
    """Return the settings of a file.

    Raises:
        UserError: the file holds no settings by name, more than settings can be, or no YAML.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is too large for settings; use at most {LARGEST:,} bytes")
        text = path.read_text(encoding="utf-8")
        if text.startswith("\ufeff"):  # Hydra would not find '# @package' behind it
            raise UserError(f"{path} begins with a byte order mark; save it without one")
        root = yaml.compose(text, yaml.SafeLoader)
        if root is None or not root.value:
            raise UserError(f"{path} is empty; {WRITE}")
        if isinstance(root, yaml.ScalarNode | yaml.SequenceNode):
            what = "a list" if isinstance(root, yaml.SequenceNode) else "one value"
            raise UserError(f"{path} is {what}; {WRITE}")
        if _size(root, {}) > MOST:
            raise UserError(f"{path} has more than {MOST:,} values by its aliases; write fewer")
        content = OmegaConf.load(path)
    except RecursionError:
        raise UserError(f"{path} is nested too deep, or in itself; write it flat") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x}); save it as UTF-8"
        ) from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}, line {line}: {error.problem}; correct it") from None
    except ReaderError as error:
        what = f"the control character {chr(error.character)!a}"
        raise UserError(f"{path} has {what} in it; remove it") from None
    except ValueError as error:
        why = str(error).partition("\n")[0]  # without the context of OmegaConf
        raise UserError(f"{path} cannot be read: {why}") from None
    assert isinstance(content, DictConfig)
    return content


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values of a node if its aliases are written out.

    Raises:
        RecursionError: the node is in itself.
    """
    if id(node) not in known and isinstance(node, yaml.CollectionNode):
        flat = node.value
        inside = itertools.chain(*flat) if isinstance(node, yaml.MappingNode) else flat
        known[id(node)] = sum(_size(one, known) for one in inside)
    return known.get(id(node), 1)


def _chosen(
    defaults: list[object] | ListConfig, group: str, path: Path
) -> Iterator[tuple[str, str, bool]]:
    """Yield group and choice of each entry of a defaults list; whether it chooses by group.

    Raises:
        UserError: an entry names no choice, or several.
    """
    for entry in defaults:
        if isinstance(entry, str) and entry != "_self_":
            yield *_absolute(entry, group).rpartition("/")[::2], False
        elif not isinstance(entry, str | DictConfig):
            raise UserError(f"{path}: {written(entry)} in defaults is not a choice; {CHOOSE}")
        for key, choice in entry.items() if isinstance(entry, DictConfig) else ():
            named = str(key).rpartition(" ")[2].partition("@")[0]  # `override /group@package`
            if isinstance(choice, ListConfig):
                raise UserError(f"{path} makes several choices for {named}; make one")
            if isinstance(choice, str):
                yield _absolute(named, group), choice, True


def _absolute(name: str, group: str) -> str:
    """Return the name of a group or file from the top; without a slash it is below `group`."""
    return name.removeprefix("/") if name.startswith("/") else f"{group}/{name}"


def _files(folder: str) -> Iterator[Path]:
    """Yield the files of a folder that are choices, or look as if they were meant to be."""
    for group in sorted(path.name for path in CONF.iterdir() if path.is_dir()):
        yield from _below(Path(folder) / group)


def _below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.yaml"))


def _choice(name: Path) -> str:
    group = str(name.parent)
    return str(name) if group == "." else f"{group}={name.stem}"
