"""The runs of a sweep: choices composed by Hydra once per combination, values set on top.

Hydra's own sweeper composes each run twice and from the files, which for a thousand runs takes
minutes; what this yields is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from pipeline.compose import CONF, parse

Composed = tuple[DictConfig, dict[str, str], list[str]]


def composed(arguments: list[str]) -> Iterator[Composed]:
    """Yield tree, choices and overrides of each run of a sweep.

    Raises:
        HydraException: as Hydra would.
    """
    known: dict[tuple[str, ...], tuple[DictConfig, dict[str, str]]] = {}
    with hydra.initialize_config_dir(str(CONF), version_base="1.3", job_name="launch"):
        loader = GlobalHydra.instance().config_loader()
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        for combination in BasicSweeper.split_arguments(overrides, None)[0]:
            yield _one(combination, known)


def _one(
    overrides: list[str], known: dict[tuple[str, ...], tuple[DictConfig, dict[str, str]]]
) -> Composed:
    parsed = parse(overrides)
    values = [o for o in parsed if not (CONF / o.key_or_group).is_dir()]
    files = tuple(o.input_line or "" for o in parsed if o not in values)
    if any(o.is_add() or o.is_delete() for o in values):
        return *_from_files(overrides), overrides
    if files not in known:
        known[files] = _from_files(list(files))
    base, choices = known[files]
    tree = copy.deepcopy(base)
    try:
        for override in values:
            OmegaConf.update(tree, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException:
        _from_files(overrides)  # says what is wrong in Hydra's words
        raise
    return tree, choices, overrides


def _from_files(overrides: list[str]) -> tuple[DictConfig, dict[str, str]]:
    tree = hydra.compose("config", overrides, return_hydra_config=True)
    choices = {k: v for k, v in tree.hydra.runtime.choices.items() if not k.startswith("hydra/")}
    with open_dict(tree):
        del tree["hydra"]
    return tree, choices
