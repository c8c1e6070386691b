"""Define the kinds of disturbances; each function returns whether it could disturb."""

import math
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from benchmarks.disturbances.night import URGENT, Night
from benchmarks.disturbances.subjects import Subject
from pipeline.records import attempt
from slurm import scheduler
from slurm.dev_cluster.daemons import start
from slurm.entry import Entry
from tests.cluster.job_under_test import update
from tests.cluster.real import answers, call, end, jobs, power_cut

REVIVAL = 9.0  # seconds; longer than SLURM takes to start a requeued job again
CONTINUES = 2.0  # seconds within which SLURM continues the processes of a job that it resumes
PARTS = {  # the processes of a job, and a word of each one's command
    "batch script": "slurm_script",
    "srun": "srun",
    "supervisor": "submitit.core._submit",
    "command": "chain.py",
    "parent": "pipeline.run",
    "worker": "pipeline.worker",
    "slurm.requeue": "slurm.requeue",
}

Disturb = Callable[[Night, Subject], bool]


def _preempt(night: Night, grace: int) -> bool:
    for subject in night.subjects:
        subject.blame("preempted")
    update(GraceTime=grace)
    nodes = f"--nodes={night.cluster.nodes}"
    words = ("--partition=high", nodes, "--exclusive", f"--job-name={URGENT}", "--time=2")
    call("sbatch", *words, "--output=/dev/null", "--wrap=sleep 1")
    return True


def preempt(night: Night, subject: Subject) -> bool:
    """Preempt all jobs, with 2 s of grace."""
    return _preempt(night, 2)


def preempt_at_once(night: Night, subject: Subject) -> bool:
    """Preempt all jobs without grace."""
    return _preempt(night, 0)


def suspend(night: Night, subject: Subject) -> bool:
    """Suspend a job for a few seconds."""
    entry = _running(night, subject)
    if not entry or not _accepts("scontrol", "suspend", entry.id):
        return False
    subject.blame("suspended")
    night.pause(night.chance.uniform(1, 6))
    resumed = _accepts("scontrol", "resume", entry.id)
    if not resumed:  # the job was ended without a save, because its processes were stopped
        subject.blame("ended while it was suspended")
        return False
    night.pause(CONTINUES)
    _continue(night, entry.id)
    return True


def _continue(night: Night, id: str) -> None:
    """Continue what SLURM left stopped in a job that it reports as RUNNING."""
    left = [number for number, _, seen in jobs(night.cluster)
            if seen["SLURM_JOB_ID"] == id and attempt.stopped(number)]  # fmt: skip
    now = scheduler.patient(lambda: scheduler.find(id))
    if not left or now is None or now.state != "RUNNING":
        return
    night.administered.append(f"continued job {id}, which SLURM had resumed and left stopped")
    for number in left:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGCONT)


def requeue(night: Night, subject: Subject) -> bool:
    """Requeue a job from outside."""
    entry = _running(night, subject)
    subject.blame("requeued")
    return bool(entry and _accepts("scontrol", "requeue", entry.id))


def time_limit(night: Night, subject: Subject) -> bool:
    """Lower a job's time limit so that its signal is due at once."""
    entry = _running(night, subject)
    if not entry or not entry.start:
        return False
    minutes = math.ceil((datetime.now() - entry.start).total_seconds() / 60) + 1
    if not _accepts("scontrol", "update", f"JobId={entry.id}", f"TimeLimit={minutes}"):
        return False
    subject.blame("time limit")
    begun = subject.starts()
    night.wait(lambda: _ended(subject, entry.id, begun), 90)
    return _accepts("scontrol", "update", f"JobId={entry.id}", "TimeLimit=60")


def _ended(subject: Subject, id: str, begun: int) -> bool:
    entry = scheduler.patient(lambda: scheduler.find(id))
    return entry is None or entry.state != "RUNNING" or subject.starts() > begun


def kill(night: Night, subject: Subject) -> bool:
    """Kill a random process of a job; its name is recorded as the cause."""
    entry = _running(night, subject)
    found = [
        (part, number)
        for number, words, seen in jobs(night.cluster)
        if entry and seen["SLURM_JOB_ID"] == entry.id and (part := _part(" ".join(words)))
    ]
    if not found:
        return False
    part, number = night.chance.choice(sorted(found))
    subject.blame(f"kill -9 of {part}", entry)
    if part == "batch script" and "supervisor" not in dict(found):  # nothing is left to requeue it
        night.ended.add(subject.name)
    with suppress(ProcessLookupError):
        os.kill(number, signal.SIGKILL)
    return True


def restart_controller(night: Night, subject: Subject) -> bool:
    """Take slurmctld away for a few seconds."""
    began = {each: entry for each in night.subjects if (entry := _running(night, each))}
    for each in night.subjects:
        each.blame("slurmctld restarted")
    number = night.chance.choice((signal.SIGTERM, signal.SIGKILL))
    night.forgetful |= number == signal.SIGKILL
    end(night.cluster, "slurmctld", number)
    night.pause(night.chance.uniform(0, 5))
    start(night.cluster, "slurmctld")
    if not night.wait(answers):
        return False
    for each, before in began.items():
        now = scheduler.patient(lambda id=before.id: scheduler.find(id))
        if now and now.state == "PENDING" and now.restarts <= before.restarts:
            each.blame("start forgotten", before)  # SLURM ends what runs on the node with SIGKILL
            night.administered.append(f"nothing: a killed slurmctld forgot the start of {now.id}")
    return True


def node_down(night: Night, subject: Subject) -> bool:
    """Set a node of a job to DOWN for a few seconds."""
    node = _node(night, subject, "node down")
    if node is None:
        return False
    call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=disturbed")
    night.pause(night.chance.uniform(1, 8))
    _accepts("scontrol", "update", f"NodeName={node}", "State=RESUME")  # it may be back by itself
    return True


def lose_power(night: Night, subject: Subject) -> bool:
    """Kill all processes on a node of a job, including slurmd, and start slurmd again."""
    node = _node(night, subject, "power cut")
    if node is None:
        return False
    power_cut(night.cluster, node)
    night.pause(night.chance.choice((3.0, 25.0)))  # SLURM considers a node lost after 20 s
    start(night.cluster, node)
    return True


def restart_slurmd(night: Night, subject: Subject) -> bool:
    """Kill a slurmd, and start it again at once; its jobs go on."""
    node = _node(night, subject, "slurmd restarted")
    if node is None:
        return False
    end(night.cluster, node, signal.SIGKILL)
    night.pause(2)
    start(night.cluster, node)
    return True


def cancel(night: Night, subject: Subject) -> bool:
    """Cancel a subject as a user does; launch it again after a check that it stays cancelled."""
    return _cancelled(night, subject, subject.cancel)


def scancel(night: Night, subject: Subject) -> bool:
    """Cancel a job with scancel; launch it again after a check that it stays cancelled."""
    entry = night.entry(subject)
    if not entry or entry.state == "COMPLETING":  # SLURM ignores a cancel of a job that is ending
        return False
    return _cancelled(night, subject, lambda: scheduler.cancel([entry.id]))


def _cancelled(night: Night, subject: Subject, end_it: Callable[[], None]) -> bool:
    subject.blame("cancelled")
    subject.cancelled = True
    end_it()
    gone = night.wait(lambda: night.entry(subject) is None, 120)
    begun = len(subject.attempts())
    night.pause(REVIVAL)
    if not gone or len(subject.attempts()) > begun or night.entry(subject):
        if subject.directories()[subject.main]:
            return False  # the job had just finished
        night.faults.append({"fault": "cancelled, and it came back", "subject": subject.name})
    night.launch(subject)
    return True


def launch_again(night: Night, subject: Subject) -> bool:
    """Launch a subject that is in the queue; the job must stay the same."""
    before = night.entry(subject)
    subject.blame("launched again")
    night.launch(subject)
    after = night.entry(subject)
    old = scheduler.find(before.id) if before else None
    if after and old and old.id != after.id and old.active:
        facts = {"subject": subject.name, "jobs": [before.id, after.id]}
        night.faults.append({"fault": "doubled", **facts})
    return True


KINDS: dict[str, Disturb] = {
    "preempted with grace": preempt,
    "preempted without grace": preempt_at_once,
    "suspended and resumed": suspend,
    "scontrol requeue": requeue,
    "time limit": time_limit,
    "kill -9 of a process": kill,
    "slurmctld restarted": restart_controller,
    "node set down": node_down,
    "node without power": lose_power,
    "slurmd restarted": restart_slurmd,
    "pipeline.cancel": cancel,
    "scancel": scancel,
    "launched again": launch_again,
}
SIGNALLED = {"preempted", "suspended", "requeued", "time limit", "slurmctld restarted",
             "slurmd restarted", "cancelled", "launched again"}  # fmt: skip


def _accepts(*command: str) -> bool:
    """Whether SLURM carried out a command; it refuses if the job's state has changed."""
    try:
        scheduler.patient(lambda: scheduler.call(*command))
    except scheduler.Refused:
        return False
    return True


def _running(night: Night, subject: Subject) -> Entry | None:
    entry = night.entry(subject)
    return entry if entry and entry.state == "RUNNING" else None


def _node(night: Night, subject: Subject, cause: str) -> str | None:
    """Return a node of a job; record the cause for all subjects with a job on that node."""
    entry = _running(night, subject)
    if entry is None:
        return None
    node = night.chance.choice(_names(entry))
    for each in night.subjects:
        if (other := night.entry(each)) and node in _names(other):
            each.blame(cause, other)
    return node


def _names(entry: Entry) -> list[str]:
    return scheduler.call("scontrol", "show", "hostnames", entry.nodes).split()


def _part(command: str) -> str | None:
    return next((part for part, word in PARTS.items() if word in command), None)
