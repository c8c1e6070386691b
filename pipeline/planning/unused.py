"""Refuse arguments that Hydra accepts and that a launch would not follow."""

from __future__ import annotations

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from pipeline.display.errors import UserError, nearest
from pipeline.planning import folder
from pipeline.planning.conf import CONF

NAMING = ("name", "kind", "family")  # settings by which a choice says which one it is
CURES = {  # what a launch has in place of a section of Hydra's
    "job_logging": "python -m pipeline.logs NAME prints the log of a run",
    "hydra_logging": "python -m pipeline.logs NAME prints the log of a run",
    "verbose": "python -m pipeline.logs NAME prints the log of a run",
    "launcher": "cluster=slurm runs stages as jobs",
    "mode": "-m sweeps",
}


def check(override: Override, own: str | None) -> None:
    """Refuse a setting that is removed, is of Hydra itself, or follows from a choice.

    Args:
        override: an argument.
        own: the user's folder of further choices; None without one.

    Raises:
        UserError: the message names the argument and the cure.
    """
    key, line = override.key_or_group, override.input_line
    first, *rest = key.replace("/", ".").split(".")
    if first == "hydra" and rest[:1] != ["sweeper"]:
        cure = CURES.get("".join(rest[:1]), "root=FOLDER says where everything is written")
        raise UserError(
            f"{line} would do nothing: {key} is not a setting of a launch, to which Hydra gives "
            f"settings and nothing else; leave it out; {cure}"
        )
    if override.is_delete() and not (CONF / key).is_dir():
        raise UserError(
            f"{line}: a setting cannot be removed; leave that out, or give it a value, {key}=VALUE "
            f"({key}=null if it can be switched off)"
        )
    if len(rest) == 1 and rest[0] in NAMING and (CONF / first).is_dir() and key != "model.name":
        value, valid = str(override.value()), sorted(folder.choices(first, own))
        cure = f"write {first}={value}" if value in valid else nearest(value, valid, f"{first}=")
        raise UserError(f"{line}: {key} follows from the choice {first}=; {cure}")


def check_network(choice: str, family: object, name: object) -> None:
    """Refuse `model.name` beside a network that is not a classifier of a library.

    Args:
        choice: the choice of `model=`.
        family: the setting `model.family`.
        name: the setting `model.name`, from the command line.

    Raises:
        UserError: the message names the choice that has such a network.
    """
    if family in ("timm", "torchvision"):
        return
    chosen = (CONF / "model" / f"{name}.yaml").is_file()
    cure = f"model={name}" if chosen else f"model=timm model.name={name}"
    raise UserError(f"model.name={name} would change only the name of model={choice}; write {cure}")


def check_shape(tree: DictConfig, override: Override) -> None:
    """Refuse `KEY={a:1}` and `KEY.a=1` where one value or a list belongs, and a list as a section.

    Args:
        tree: the composed choices.
        override: an argument that sets a value.

    Raises:
        UserError: the message names the setting and how to write it.
    """
    key, line = override.key_or_group, override.input_line
    paths = [key] if isinstance(override.value(), dict) else []
    paths += [key[:end] for end, sign in enumerate(key) if sign == "."]
    for path in paths:
        found = _select(tree, path)
        if isinstance(found, ListConfig):
            raise UserError(f"{line}: {path} is a list; write {path}=[VALUE,…]")
        if found is not None and not isinstance(found, DictConfig):
            raise UserError(f"{line}: {path} is one value; write {path}=VALUE")
    if isinstance(override.value(), list) and isinstance(_select(tree, key), DictConfig):
        raise UserError(f"{line}: {key} is a section; set what is in it, {key}.KEY=VALUE")


def _select(tree: DictConfig, key: str) -> object:
    return OmegaConf.select(tree, key, throw_on_resolution_failure=False)
