"""Test `records.schemas`: what readers get from the files of older and newer versions."""

import pytest

from pipeline.display.errors import UserError
from pipeline.records import store
from pipeline.records.schemas import Result
from tests.runs import make_run


@pytest.mark.parametrize(
    "written", [{"loss": 0.5}, {"val_loss": 0.5}, {"val_loss": 0.5, "loss": 0.5}]
)
def test_validation_loss_has_one_name_whatever_version_wrote_it(written):
    result = Result(stage="train", seconds=1.0, metrics={**written, "top1": 90.0})
    assert result.numbers() == {"val_loss": 0.5, "top1": 90.0}
    assert result.metrics == {**written, "top1": 90.0}  # the metrics keep the names in the file


@pytest.mark.parametrize("stage", ["train", "fuse"])
def test_a_result_that_was_copied_from_another_stage_is_refused(tmp_path, stage):
    one, other = make_run(tmp_path, "one"), make_run(tmp_path, "other", seed=2)
    result = store.read(Result, one / stage)
    (other / stage / Result.FILE).write_bytes((one / stage / Result.FILE).read_bytes())
    assert store.read(Result, one / stage) == result
    with pytest.raises(UserError, match=rf"is that of {stage}-\w+, copied from there; `rm -r "):
        store.read(Result, other / stage)


def test_a_result_that_a_repetition_put_aside_is_read(tmp_path):
    run = make_run(tmp_path, "one")
    kept = (run / "eval").resolve()
    result = store.read(Result, kept)
    assert store.read(Result, kept.rename(kept.with_name(f"{kept.name}.again-1"))) == result
