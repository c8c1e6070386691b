"""Test `records.schemas`: what readers get from the files of older and newer versions."""

import pytest

from pipeline.records.schemas import Result


@pytest.mark.parametrize(
    "written", [{"loss": 0.5}, {"val_loss": 0.5}, {"val_loss": 0.5, "loss": 0.5}]
)
def test_validation_loss_has_one_name_whatever_version_wrote_it(written):
    result = Result(stage="train", seconds=1.0, metrics={**written, "top1": 90.0})
    assert result.numbers() == {"val_loss": 0.5, "top1": 90.0}
    assert result.metrics == {**written, "top1": 90.0}  # the metrics keep the names in the file
