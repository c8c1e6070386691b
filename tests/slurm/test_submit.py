"""Test how jobs are submitted: in levels, in arrays, with the text of the batch script."""

from pathlib import Path

import pytest

from slurm import sbatch, submit
from slurm.job import Job, Resources
from slurm.sbatch import Executor
from slurm.submit import Submission, levels

GOLDEN = Path(__file__).with_name("job.sbatch")


def job(name, *after, **resources):
    directory = Path("/jobs") / name
    return Job(
        name=name, command=("true",), directory=directory, finished=directory / "result.json",
        after=tuple(Path("/jobs") / other for other in after),
        resources=Resources(time_limit=5, **resources),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("jobs", "found"),
    [
        ([], []),
        ([job("a"), job("b")], [["a", "b"]]),
        ([job("a"), job("b", "a"), job("c", "b")], [["a"], ["b"], ["c"]]),
        ([job("a"), job("b", "a"), job("c", "a"), job("d", "a", "c")], [["a"], ["b", "c"], ["d"]]),
        ([job("b", "elsewhere")], [["b"]]),  # the job it depends on is in the queue already
    ],
)
def test_jobs_are_grouped_by_the_length_of_their_chain_of_dependencies(jobs, found):
    assert [[one.name for one in level] for level in levels(jobs)] == found


@pytest.fixture
def submission(tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "cancels", lambda resources: False)
    return Submission(tmp_path, Path("/code"), parallel=4, longest=2, final=1)


@pytest.mark.parametrize(
    ("jobs", "ids", "found"),
    [
        ([job("a"), job("b")], {}, [(["a", "b"], "")]),
        ([job("a"), job("b"), job("c")], {}, [(["a", "b"], ""), (["c"], "")]),
        ([job("a"), job("b", nodes=2)], {}, [(["a"], ""), (["b"], "")]),
        ([job("c", "a"), job("d", "a")], {"a": "7"}, [(["c", "d"], "afterok:7")]),
        ([job("c", "a"), job("d", "b")], {"a": "7_0", "b": "7_1"}, [(["c", "d"], "aftercorr:7")]),
        ([job("d", "b"), job("c", "a")], {"a": "7_0", "b": "7_1"},
         [(["d"], "afterok:7_1"), (["c"], "afterok:7_0")]),
        ([job("c", "a", "b")], {"a": "7", "b": "8"}, [(["c"], "afterok:7,afterok:8")]),
    ],
)  # fmt: skip
def test_jobs_with_equal_resources_become_one_array_with_one_dependency(
    jobs, ids, found, submission
):
    submission.ids = {Path("/jobs") / name: id for name, id in ids.items()}
    made = submission.batches(jobs)
    assert [([one.name for one in batch.jobs], batch.dependency) for batch in made] == found


def test_the_batch_script_equals_the_kept_file(monkeypatch):
    """After an intended change, print `text` into the file and check what the script does."""
    monkeypatch.setattr(sbatch.sys, "executable", "/env/bin/python")
    resources = Resources(
        nodes=2, gpus_per_node=4, cpus_per_node=16, memory=64, time_limit=90, partition="low",
        account="us", qos="normal", constraint="h100", exclusive=True, sbatch={"nice": 5},
        srun=("--mpi=none",), setup=("module load cuda",),
    )  # fmt: skip
    executor = Executor(Path("/o/slurm"), Path("/o/code/1"), resources, True, final=5)
    executor.prepare("train", "token", "afterok:7", 4)
    assert executor.text(count=3) == GOLDEN.read_text()
