"""Check that interrupted jobs resume by themselves on this cluster: settings, then a rehearsal.

The rehearsal is a real job. The doctor interrupts it like a preemption; the job must save, be
requeued and continue where it stopped.
"""

from __future__ import annotations

import argparse
import fcntl
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from slurm import files, marks, output, preflight, private, scheduler, site, wishes
from slurm.job import Job, Resources
from slurm.notation import numbers
from slurm.records import EVENTS, PROGRESS, rows
from slurm.rehearsal import COUNT, LOCK, NODE, RESULT, Node, Seen
from slurm.scheduler import Refused, Unreachable
from slurm.submit import Submission

PATIENCE = 900.0  # seconds for the rehearsal, mostly queueing
SHORT = 60  # seconds of notice; fewer may not suffice for a long step and a save


@dataclass(frozen=True)
class Finding:
    """One finding: `well` is None if it is neither good nor bad."""

    well: bool | None
    what: str
    cure: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Examine the cluster; return 0 if interrupted jobs resume, 1 if something is wrong."""
    output.make_safe()
    parser = argparse.ArgumentParser(
        prog=output.program("slurm.doctor"),
        description=__doc__,
        epilog="Exit codes: 0 all is well, 1 something is wrong (with its fix), 2 bad input.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--partition", help="where jobs will run (default: the cluster's)")
    parser.add_argument("--account", help="whom they are charged to")
    parser.add_argument("--qos", help="their quality of service")
    parser.add_argument("--gpus", default="0", metavar="[TYPE:]N",
                        help="of the rehearsal (default: none)")  # fmt: skip
    parser.add_argument("--dir", type=Path, default=Path("outputs"),
                        help="where runs will live (default: outputs)")  # fmt: skip
    options = parser.parse_args(arguments)
    kind, number = _gpus(parser, options.gpus)
    resources = Resources(
        time_limit=10,
        signal_seconds=30,
        gpus_per_node=number,
        gpu_type=kind,
        partition=options.partition,
        account=options.account,
        qos=options.qos,
    )
    bad = 0
    try:
        for finding in examine(wishes.obey(resources), options.dir):
            bad += finding.well is False
            mark = {True: "ok  ", False: "BAD ", None: "    "}[finding.well]
            print(f"{mark} {finding.what}", flush=True)
            if finding.cure:
                print(f"       → {finding.cure}", flush=True)
    except (Refused, Unreachable, OSError) as error:
        cure = "; choose another --dir" if isinstance(error, OSError) else ""
        print(f"error: {error}{cure}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if bad:
        print(f"{bad} problem(s) above can lose work; apply the fix shown under each")
        return 1
    print("interrupted jobs come back here; next: python -m pipeline.launch cluster=slurm")
    return 0


def _gpus(parser: argparse.ArgumentParser, text: str) -> tuple[str | None, int]:
    """Parse `N` or `TYPE:N`; return the type, None without one, and the number."""
    kind, _, number = text.rpartition(":")
    if not number.isdecimal():
        parser.error(f"--gpus {text} is not a number of GPUs; use N or TYPE:N, e.g. a100:2")
    return kind or None, int(number)


def examine(resources: Resources, directory: Path) -> Iterator[Finding]:
    """Yield the findings, from the settings and from a rehearsal.

    Raises:
        Refused: SLURM is not installed, or refuses the job.
        Unreachable: SLURM does not answer.
    """
    yield Finding(True, f"{scheduler.call('sinfo', '--version').strip()} answers")
    settings = site.config()
    preflight.check(resources, directory)
    directory.mkdir(parents=True, exist_ok=True)
    if who := private.writers(directory):
        cure = "close it (chmod go-w) or choose another, unless you trust them"
        yield Finding(None, f"{who} may write to {directory}, and so change what jobs read", cure)
    partitions = preflight.chosen(resources.partition)
    for partition in partitions:
        yield from _limits(partition)
    longest = preflight.longest_array()
    yield Finding(None, f"arrays of up to {longest} jobs: longer sweeps are split")
    yield from _preemption(partitions, settings, resources)
    yield from _requeue(settings)
    yield from _accounting()
    yield from _rehearse(resources, directory)


def _limits(partition: dict[str, str]) -> Iterator[Finding]:
    name, limit = partition["PartitionName"], partition["MaxTime"]
    yield Finding(True, f"partition {name} takes jobs of up to {limit.lower()}")


def _preemption(
    partitions: list[dict[str, str]], settings: dict[str, str], resources: Resources
) -> Iterator[Finding]:
    mode = preflight.preemption(resources.partition, resources.qos, resources.account)
    kill = int(settings["KillWait"].split()[0])
    graces = (p["GraceTime"] for p in partitions)
    grace = min(int(grace) if grace.isdigit() else 0 for grace in graces)
    if mode.upper() in ("OFF", "NONE"):
        yield Finding(None, "jobs here are not preempted; time limits and failures remain")
        return
    if "SUSPEND" in mode.upper() or "GANG" in mode.upper():
        yield Finding(None, f"preempted jobs are suspended ({mode}) and go on in place")
        return
    what = "cancelled; a successor is queued with each" if "CANCEL" in mode else "requeued"
    yield Finding(True, f"preempted jobs are {what}")
    notice = grace + kill
    yield Finding(
        None if notice >= SHORT else True,
        f"between the signal and the end there are {notice} s (grace {grace}, KillWait {kill})",
        ""
        if notice >= SHORT
        else "a step and a save must finish in that time, or work since the last save repeats",
    )


def _requeue(settings: dict[str, str]) -> Iterator[Finding]:
    expire = dict(
        pair.split("=", 1) for pair in settings.get("AuthInfo", "").split(",") if "=" in pair
    ).get("cred_expire", "120")
    yield Finding(None, f"a requeued job starts {int(expire) + 1} s later at the earliest")
    if settings.get("JobRequeue") == "0":
        yield Finding(None, "jobs are not requeued unless they ask to (JobRequeue=0); ours ask to")
    if codes := numbers(settings["RequeueExit"], settings["RequeueExitHold"]):
        text = ", ".join(map(str, sorted(codes)))
        what = f"SLURM repeats or holds jobs that end with exit code {text}"
        yield Finding(None, f"{what}; a job that is given up ends with another code")


def _accounting() -> Iterator[Finding]:
    try:
        scheduler.call("sacct", "--noheader", "--allocations", "--jobs=1")
        yield Finding(True, "accounting answers")
    except (Refused, Unreachable) as error:
        yield Finding(
            None, f"no accounting ({error}): how a job ended is known only while squeue shows it"
        )


def _rehearse(resources: Resources, directory: Path) -> Iterator[Finding]:
    """Submit a job, interrupt it, and watch it resume."""
    folder = Path(tempfile.mkdtemp(prefix="rehearsal-", dir=directory)).resolve()
    job = Job(
        name="rehearsal",
        command=(sys.executable, "-m", "slurm.rehearsal", str(folder)),
        directory=folder,
        finished=folder / RESULT,
        resources=resources,
    )
    submission = Submission(
        folder / "slurm", Path(__file__).parent.parent, parallel=1, longest=1,
        final=site.final(1, site.config()), named=True,
    )  # fmt: skip
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            submission.submit([job], {folder: ["doctor"]})
            yield _known_by(submission.kept)
            yield from _interrupt(job, submission.ids[folder])
        finally:
            scheduler.cancel(submission.ids.values())
    shutil.rmtree(folder, ignore_errors=True)


def _known_by(kept: list[str]) -> Finding:
    """Report how jobs are recognized: by the fields in which SLURM kept its mark."""
    if marks.COMMENT in kept:
        return Finding(True, "jobs keep their comment, by which they are recognized")
    times = "their ids and when they were submitted"
    how = f"a mark in their names, and by {times}" if marks.NAME in kept else times
    return Finding(None, f"this cluster overwrites job comments; our jobs are recognized by {how}")


def _interrupt(job: Job, id: str) -> Iterator[Finding]:
    print(f"     rehearsal: job {id}, in the queue", file=sys.stderr, flush=True)
    until = time.monotonic() + PATIENCE
    seen = Seen(job.directory / PROGRESS)
    if not _wait(lambda: seen.saved() >= 3 or _over(id), until) or _over(id):
        yield Finding(False, f"job {id} did not start working", _advice(job, id, until))
        return
    yield from _node(Node(**files.read_json(job.directory / NODE)), job.resources)
    yield Finding(
        not seen.torn,
        f"files that a node replaces are seen complete, at most {seen.lag:.1f} s later"
        if not seen.torn
        else "a file that a node replaced was read half-written",
        "use a file system whose rename is atomic for root" if seen.torn else "",
    )
    scheduler.call("scancel", f"--signal={signal.Signals(signal.SIGTERM).name[3:]}", id)
    if not _wait(lambda: (job.directory / COUNT).exists(), until):
        yield Finding(False, "the job did not save on the signal", _advice(job, id, until))
        return
    saved = files.read_json(job.directory / COUNT)["step"]
    print(f"     rehearsal: interrupted and saved at step {saved}", file=sys.stderr, flush=True)
    if not _wait(lambda: job.finished.exists() or _over(id), until) or not job.finished.exists():
        yield Finding(False, f"job {id} did not resume", _advice(job, id, until))
        return
    begun = [attempt["from"] for attempt in files.read_json(job.finished)["attempts"]]
    yield Finding(
        begun == [0, saved],
        f"an interrupted job saved at step {saved}, requeued itself, and resumed at {begun[-1]}",
    )


def _node(node: Node, resources: Resources) -> Iterator[Finding]:
    yield Finding(True, f"node {node.host} sees the directory, with Python {node.python}")
    yield Finding(
        True if node.locked else None,
        "locks reach other nodes" if node.locked else "locks do not reach other nodes",
        "" if node.locked else "do not launch one run from two machines at the same time",
    )
    well = node.torch[:1].isdigit()
    yield Finding(
        well,
        f"torch on the node: {node.torch}",
        "" if well else "install the environment where the nodes can see it, or set cluster.setup",
    )
    if well:
        yield from _gpus_seen(node, resources)


def _gpus_seen(node: Node, resources: Resources) -> Iterator[Finding]:
    """Yield what the number of GPUs that torch sees means for a training."""
    wanted, sees = resources.gpus_per_node, int(node.torch.split(" sees ")[1].split()[0])
    if wanted:
        yield Finding(bool(node.gpus), f"GPUs on the node: {node.gpus or 'none'}")
        cure = "compare the driver (nvidia-smi) with what torch needs; +cpu is one without GPUs"
        bad = sees < wanted
        yield Finding(not bad, f"torch sees {sees} of {wanted} GPUs asked for", cure if bad else "")
    elif preflight.gpus(resources.partition):
        cure = "try it: --gpus 1"
        yield Finding(None, "no GPU was asked for here; a training asks for one per process", cure)
    else:
        yield Finding(None, "the partition has no GPUs: a training computes on its CPUs")


def _wait(condition: Callable[[], bool], until: float) -> bool:
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.2)
    return False


def _over(id: str) -> bool:
    try:
        entry = scheduler.find(id)
    except Unreachable:
        return False
    return entry is None or not entry.active


def _advice(job: Job, id: str, until: float) -> str:
    """Return the known facts about a job that failed the rehearsal."""
    entry = scheduler.find(id)
    if entry and entry.state == "PENDING":
        return f"the job is pending ({entry.reason}); try again, or another --partition"
    last = list(rows(job.directory / EVENTS))[-1:]
    log = job.directory / "slurm" / f"{id}_0_log.out"
    lines = log.read_text(encoding="utf-8").strip().splitlines()[-1:] if log.exists() else []
    return f"last event: {last or 'none'}; its log ends: {' '.join(lines) or 'empty'}"


if __name__ == "__main__":
    sys.exit(main())
