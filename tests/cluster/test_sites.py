"""Test that jobs are recognized, whatever the plugin of a site writes into them."""

import pytest

from slurm import preflight, scheduler
from slurm.job import Resources
from slurm.queue import queued
from slurm.scheduler import Refused
from tests.cluster.job_under_test import preempt
from tests.cluster.real import call, needs_slurm, restart, wait_for

pytestmark = [pytest.mark.cluster, needs_slurm]

WRITES = """
function slurm_job_submit(job, partitions, user)
  {}
  return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user) return slurm.SUCCESS end
return slurm.SUCCESS
"""
NONE = {"MaxWall": "-1", "MaxTRESPerJob": "cpu=-1", "GrpTRES": "cpu=-1"}
COMMENT = 'job.comment = "project=ml"'
NAME = 'job.name = "of the site"'


@pytest.fixture(scope="module")
def site(cluster):
    """Return a function that sets the statements by which the site changes submitted jobs."""
    plain = cluster.conf.read_text()
    script = cluster.directory / "job_submit.lua"

    def write(*what):
        script.write_text(WRITES.format("; ".join(what)))

    write()
    restart(cluster, f"{plain}JobSubmitPlugins=lua\nAccountingStorageEnforce=limits\n")
    yield write
    restart(cluster, plain)


def test_jobs_whose_comment_a_site_overwrites_are_recognized(chain, site, tmp_path):
    site(COMMENT)
    work = chain().submit().working()
    before = work.ids
    preempt(tmp_path)
    wait_for(lambda: work.events("requeued"))
    assert work.submit().ids == before
    work.finished().lost_nothing()


def test_jobs_whose_comment_and_name_a_site_overwrites_are_recognized_and_cancelled(chain, site):
    site(COMMENT, NAME)
    work = chain().submit().working()
    before = work.ids
    assert work.submit().ids == before
    found = [
        entry for job in work.jobs for entry, _ in queued(job.directory, scheduler.user_jobs())
    ]
    assert [entry.id for entry in found] == list(before.values())
    scheduler.cancel(reversed([entry.id for entry in found]))


def test_a_comment_of_the_user_is_kept(chain, site):
    site()
    work = chain(comment="project=ml").submit()
    assert scheduler.find(work.id).comment == "project=ml"
    (entry,) = [entry for entry, _ in queued(work.job.directory, scheduler.user_jobs())]
    assert entry.id == work.id
    scheduler.cancel([work.next_id, work.id])


@pytest.mark.parametrize("limit", ["MaxWall=00:04:00", "MaxTRESPerJob=cpu=1", "GrpTRES=cpu=1"])
def test_a_job_that_would_wait_for_ever_is_refused(site, tmp_path, limit):
    site()
    name = limit.partition("=")[0]
    job = Resources(time_limit=5, cpus_per_node=2)
    preflight.check(job, tmp_path)
    call("sacctmgr", "-i", "modify", "qos", "normal", "set", limit)
    try:
        with pytest.raises(Refused, match="would let it wait for ever"):
            preflight.check(job, tmp_path)
    finally:
        call("sacctmgr", "-i", "modify", "qos", "normal", "set", f"{name}={NONE[name]}")
    preflight.check(job, tmp_path)


def test_a_job_runs_in_one_of_several_partitions(site, chain):
    site()
    work = chain(steps=1, partition="low,high").submit().finished()
    assert len(work.attempts()) == 1
