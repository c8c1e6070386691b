"""What is on record of a run."""

from pipeline.planning import named_run
from pipeline.records import store
from pipeline.records.schemas import Run


def test_a_launch_while_the_run_is_in_the_queue_lists_no_job_twice(tmp_path):
    store.write(Run(choices={}), tmp_path)
    for ids in ({"prep": "1", "train": "2"}, {"prep": "1", "train": "2"}, {"train": "3"}, {}):
        named_run.note_jobs(tmp_path, ids)
    assert store.read(Run, tmp_path).job_ids == [{"prep": "1", "train": "2"}, {"train": "3"}]
