"""Test that lists of the same names agree; there are two because a launch does not import torch."""

from typing import get_args

import pytest

import dyrep
from dyrep import branches, linear_branches, saliency
from pipeline.config import Config, base
from pipeline.config.model import DyRep
from pipeline.contract.table import STAGES
from pipeline.execution import resources
from pipeline.planning import conf, summary
from pipeline.report import run_data, shipping
from pipeline.stages.export.formats import FORMATS


def chosen(group):
    return {file.stem for file in (conf.CONF / group).glob("*.yaml")}


PAIRS = {
    "branches of the settings and of dyrep": (get_args(base.Branch), dyrep.ALL_BRANCHES),
    "branches of linear blocks alone": (get_args(base.OfLinear), branches.LINEAR_ONLY),
    "branches and their linear strengths": (
        linear_branches.START,
        (*dyrep.ALL_BRANCHES, *branches.LINEAR_ONLY),
    ),
    "saliencies": (get_args(DyRep.model_fields["saliency"].annotation), saliency.SCORES),
    "stages and their table": (base.STAGE_NAMES, STAGES),
    "stages and their lines after a launch": (base.STAGE_NAMES, summary.LINES),
    "stages and what stage= chooses": ({*base.STAGE_NAMES, "all"}, chosen("stage")),
    "export formats and their writers": (get_args(base.ExportFormat), FORMATS),
    "variants and their words in the report": (
        {*get_args(base.Variant), "fused", "unfused", "plain"},
        run_data.WHAT,
    ),
}

PARTS = {
    "exports that need a GPU": (resources.FOR_GPUS, get_args(base.ExportFormat)),
    "exports that can be timed": (get_args(base.ExportFormat), get_args(base.Variant)),
    "colours of the report": (shipping.COLOURS, run_data.WHAT),
    "stages in processes of their own": (base.PARALLEL, base.STAGE_NAMES),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_both_lists_have_the_same_names(pair):
    one, other = PAIRS[pair]
    assert set(one) == set(other)


@pytest.mark.parametrize("part", PARTS)
def test_one_list_is_part_of_the_other(part):
    some, all_of_them = PARTS[part]
    assert set(some) <= set(all_of_them)


def test_the_table_marks_the_same_stages_as_parallel_as_the_configuration():
    assert {name for name, stage in STAGES.items() if stage.processes} == set(base.PARALLEL)


def test_each_source_of_data_can_be_chosen():
    names = {tag for kind in get_args(Config.model_fields["data"].annotation)
             for tag in get_args(kind.model_fields["name"].annotation)}  # fmt: skip
    assert names == chosen("data")
