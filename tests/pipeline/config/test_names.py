"""What has to be spelled in two places, because a launch does not import torch, is one list."""

from typing import get_args

import pytest

import dyrep
from dyrep import linear, saliency
from pipeline.config import base
from pipeline.config.model import DyRep

PAIRS = {
    "branches of the settings and of dyrep": (get_args(base.Branch), dyrep.ALL_BRANCHES),
    "branches and their linear strengths": (linear.START, dyrep.ALL_BRANCHES),
    "saliencies": (get_args(DyRep.model_fields["saliency"].annotation), saliency.SCORES),
    "stages": (get_args(base.StageName), base.STAGE_NAMES),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_both_lists_have_the_same_names(pair):
    one, other = PAIRS[pair]
    assert set(one) == set(other)
