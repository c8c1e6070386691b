"""Test that a launch refuses in one line what SLURM would refuse, and submits nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slurm import scheduler, site
from tests.cluster.real import needs_slurm, wait_for
from tests.launcher import PROJECT

pytestmark = [pytest.mark.cluster, needs_slurm]


def launch(root, *settings, environment=None):
    return subprocess.run(
        [
            sys.executable, "-m", "pipeline.launch", "cluster=slurm", "cluster.cpus_per_process=1",
            f"root={root}", *settings,
        ],
        cwd=PROJECT, env=os.environ | (environment or {}), capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip


def refused(done, *words):
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "settings, words",
    [
        (["cluster.partition=nowhere"], ["nowhere", "low, high"]),
        (["cluster.time_limit=2-00:00:00"], ["2880 minutes", "1440 minutes", "low"]),
        (["cluster.gpus_per_node=3"], ["3 GPUs", "gpu:2"]),
        (["cluster.nodes=5", "train.batch_size=50", "eval.batch_size=50"], ["5 nodes", "4 nodes"]),
        (["cluster.memory=9000"], ["9000", "MB"]),
        (["cluster.time_limit=3"], ["cluster.signal_seconds", "at least 5"]),
        (["cluster.sbatch={nonsense: 1}"], ["nonsense"]),
        (["cluster.setup=['if true']"], ["cluster.setup", "unexpected end of file", "correct it"]),
        (["cluster.srun=[--nope]"], ["cluster.srun=--nope", "unrecognized option", "correct it"]),
        (["cluster.srun=[hostname]"], ["words that are not options; leave them out"]),
        (["+cluster.sbatch.chdir=/nowhere"], ["--chdir", "leave it out"]),
        (["+cluster.sbatch.nodelist=n99", "dry_run=true"], ["cluster.sbatch.nodelist=n99"]),
        (["+cluster.sbatch.comment=mine"], ["--comment", "leave it out"]),
        (["+cluster.sbatch.partition=high"], ["--partition", "setting of its own"]),
        (["-m", "seed=1,2", "cluster.partition=low,nowhere"], ["nowhere"]),
    ],
)
def test_what_slurm_would_refuse_is_refused_in_one_line(cluster, tmp_path, settings, words):
    before = len(scheduler.user_jobs())
    done = launch(tmp_path, *settings)
    if "-m" in settings:  # each run of a sweep has its own line
        done.stderr = done.stderr.splitlines()[0]
    refused(done, *words)
    assert len(scheduler.user_jobs()) == before
    assert not list(tmp_path.iterdir())


def test_a_root_that_slurm_would_rewrite_is_refused(cluster, tmp_path):
    refused(launch(tmp_path / "100%"), "100%", "another root")


def test_a_job_is_submitted_and_waits_while_all_nodes_are_drained(cluster, tmp_path):
    scheduler.call("scontrol", "update", "NodeName=ALL", "State=DRAIN", "Reason=test")
    try:
        done = launch(tmp_path, "name=later", "stage=prep")
    finally:
        scheduler.call("scontrol", "update", "NodeName=ALL", "State=RESUME")
    assert done.returncode == 0, done.stderr
    wait_for((tmp_path / "runs" / "later" / "prep" / "result.json").exists)


def test_a_launch_without_slurm_says_how_to_launch_locally(cluster, tmp_path):
    done = launch(tmp_path, environment={"PATH": str(tmp_path / "nowhere")})
    refused(done, "there is no", "cluster=local")


def test_a_launch_is_refused_if_slurmctld_does_not_answer(cluster, tmp_path):
    conf = tmp_path / "slurm.conf"
    text = cluster.conf.read_text()
    port = next(line for line in text.splitlines() if line.startswith("SlurmctldPort="))
    conf.write_text(text.replace(port, "SlurmctldPort=1") + "MessageTimeout=2\n")
    done = launch(tmp_path / "o", environment={"SLURM_CONF": str(conf)})
    refused(done, "nothing is submitted")


def test_a_root_that_nodes_cannot_see_is_refused(cluster, monkeypatch):
    """A stand-in names two hosts, because the nodes of the dev cluster share one machine."""
    from slurm import preflight

    monkeypatch.setattr(site, "hosts", lambda: {"one", "two"})
    with pytest.raises(scheduler.Refused, match="no other node sees"):
        preflight.shared(Path("/dev/shm/new"))


def test_a_cluster_that_requeues_nothing_is_refused(cluster, tmp_path):
    """A stand-in for squeue reports Requeue=0, which the plugin of a site may set."""
    real = shutil.which("squeue")
    wrapper = tmp_path / "bin" / "squeue"
    wrapper.parent.mkdir()
    in_text = r"s/\x1f1\x1f\x1e/\x1f0\x1f\x1e/"  # the last field of a line
    in_json = 's/"requeue": true/"requeue": false/'
    wrapper.write_text(f"#!/bin/sh\n{real} \"$@\" | sed -e '{in_text}' -e '{in_json}'\n")
    wrapper.chmod(0o755)
    before = {id for id, entry in scheduler.user_jobs().items() if entry.active}
    path = f"{wrapper.parent}:{os.environ['PATH']}"
    done = launch(tmp_path / "o", environment={"PATH": path})
    refused(done, "requeued", "administrator")
    assert {id for id, entry in scheduler.user_jobs().items() if entry.state == "RUNNING"} <= before


def test_a_launch_from_inside_a_job_works(cluster, tmp_path):
    settings = f"name=in stage=prep cluster=slurm cluster.cpus_per_process=1 root={tmp_path}"
    command = f"{sys.executable} -m pipeline.launch {settings}"
    done = subprocess.run(
        ["srun", "--nodes=1", "bash", "-c", f"cd {PROJECT} && {command}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "in the queue" in done.stdout
    facts = json.loads((tmp_path / "runs" / "in" / "run.json").read_text())
    scheduler.cancel(facts["job_ids"][-1].values())


def test_a_dry_run_prints_the_batch_scripts_and_touches_nothing(cluster, tmp_path):
    root = tmp_path / "a root with blanks"
    done = launch(root, "dry_run=true", "cluster.setup=['module load cuda']", "cluster.nodes=2")
    assert done.returncode == 0, done.stderr
    for text in ("#SBATCH --requeue", "#SBATCH --signal=USR2@120", "module load cuda",
                 "#SBATCH --nodes=2", "#SBATCH --exclusive", "afterok:JOB_ID_OF_TRAIN",
                 "slurm.requeue"):  # fmt: skip
        assert text in done.stdout
    assert not root.exists()


@pytest.mark.parametrize(
    ("exports", "jobs"), [("[onnx]", 4), ("[onnx,tensorrt]", 5), ("[aotinductor]", 5)]
)
def test_fuse_gets_a_gpu_only_for_exports_compiled_for_one(cluster, tmp_path, exports, jobs):
    done = launch(tmp_path, "dry_run=true", f"fuse.exports={exports}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("#SBATCH --gres=gpu:1") == jobs


def test_a_root_with_blanks_works(cluster, tmp_path):
    root = tmp_path / "a root with blanks"
    done = launch(root, "name=odd", "stage=prep", "wait=true")
    assert done.returncode == 0, done.stderr
    assert (root / "runs" / "odd" / "prep" / "result.json").exists()
