"""What a site's plugin makes of jobs: ours are known again, whatever it writes."""

import os
import signal
from pathlib import Path

import pytest

from slurm import scheduler
from slurm.dev_cluster.daemons import start
from slurm.queue import queued
from tests.cluster.job_under_test import preempt
from tests.cluster.real import needs_slurm, wait_for

pytestmark = [pytest.mark.cluster, needs_slurm]

WRITES = """
function slurm_job_submit(job, partitions, user)
  {}
  return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user) return slurm.SUCCESS end
return slurm.SUCCESS
"""
COMMENT = 'job.comment = "project=ml"'
NAME = 'job.name = "of the site"'


@pytest.fixture(scope="module")
def site(cluster):
    """Return a way to have the site write what jobs are submitted with."""
    plain = cluster.conf.read_text()
    script = cluster.directory / "job_submit.lua"

    def write(*what):
        script.write_text(WRITES.format("; ".join(what)))

    write()
    restart(cluster, f"{plain}JobSubmitPlugins=lua\n")
    yield write
    restart(cluster, plain)


def restart(cluster, configuration):
    cluster.conf.write_text(configuration)
    pid = int((cluster.directory / "run" / "slurmctld.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not Path(f"/proc/{pid}/cmdline").exists() or gone(pid))
    start(cluster, "slurmctld")
    wait_for(answers)


def gone(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def answers():
    try:
        return scheduler.partitions()
    except scheduler.Unreachable:
        return False


def test_jobs_whose_comment_a_site_writes_are_known_again(chain, site, tmp_path):
    site(COMMENT)
    work = chain().submit().working()
    before = work.ids
    preempt(tmp_path)
    wait_for(lambda: work.events("requeued"))
    assert work.submit().ids == before
    work.finished().lost_nothing()


def test_jobs_of_which_a_site_writes_all_are_known_again_and_cancelled(chain, site):
    site(COMMENT, NAME)
    work = chain().submit().working()
    before = work.ids
    assert work.submit().ids == before
    found = [entry for job in work.jobs for entry, _ in queued(job.directory, scheduler.mine())]
    assert [entry.id for entry in found] == list(before.values())
    scheduler.cancel(reversed([entry.id for entry in found]))


def test_the_comment_is_the_users(chain, site):
    site()
    work = chain(comment="project=ml").submit()
    assert scheduler.find(work.id).comment == "project=ml"
    (entry,) = [entry for entry, _ in queued(work.job.directory, scheduler.mine())]
    assert entry.id == work.id
    scheduler.cancel([work.next_id, work.id])
