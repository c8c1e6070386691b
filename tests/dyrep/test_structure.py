"""Test that a network's structure is saved and restored as plain data."""

import pytest

import dyrep
from tests.dyrep.networks import network

pytestmark = pytest.mark.long


def test_a_structure_names_its_form_and_one_without_a_form_has_batch_norms():
    model = network()
    assert dyrep.structure(model)["form"] is None
    dyrep.expand(model, form="linear")
    description = dyrep.structure(model)
    fresh = network()
    dyrep.apply_structure(fresh, description)
    assert dyrep.structure(fresh) == description
    assert list(fresh.state_dict()) == list(model.state_dict())
    dyrep.expand(old := network())
    description = dyrep.structure(old)
    del description["form"]
    dyrep.apply_structure(again := network(), description)
    again.load_state_dict(old.state_dict(), strict=True)
