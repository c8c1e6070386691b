"""Start, find and end the daemons of a SLURM cluster on this one machine."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from slurm import shell
from slurm.dev_cluster.config import Cluster, write_files
from slurm.dev_cluster.directory import claim, is_marked, remove
from slurm.dev_cluster.machine import BadInput, Failed, call, check_machine, check_root, tail

OWNER = "SLURM_CLUSTER_NAME"  # variable in jobs (from SLURM) and daemons (from us): their cluster
CLIENTS = {"srun", "salloc", "sbatch", "scontrol", "squeue", "sinfo", "sacct", "sacctmgr"}
PATIENCE = 60.0  # seconds for each step of the start
POLL = 0.05  # seconds between two checks

Say = Callable[[str], None]
_children: list[subprocess.Popen[bytes]] = []  # daemons started by this process, to be reaped


def up(cluster: Cluster, say: Say = lambda line: None) -> None:
    """Start `cluster`; return when a job has run on all of its nodes.

    Raises:
        BadInput: this machine or the directory is unsuitable; nothing is left behind.
        Failed: a daemon did not start; everything was ended and removed again.
    """
    cluster.check()
    check_machine(cluster.accounting)
    claim(cluster)
    try:
        write_files(cluster)
        for what, names, ready in _steps(cluster):
            _bring_up(cluster, what, names, ready, say)
    except BaseException:
        down(cluster.directory)
        raise


def down(directory: Path) -> bool:
    """End every process of the cluster in `directory` and remove it; return whether there was one.

    Raises:
        BadInput: the directory is not that of a cluster, or another user may have written to it.
        Failed: a process cannot be ended.
    """
    cluster = Cluster(directory)
    directory = cluster.directory
    ours = is_marked(directory)
    if not ours and directory.exists() and any(directory.iterdir()):
        raise BadInput(f"{directory} holds no cluster, nothing was removed; name the right --dir")
    if ours:
        check_root()
    ended = _end(cluster)
    if ours:
        remove(directory)
    return ours or ended


def start(cluster: Cluster, name: str) -> subprocess.Popen[bytes]:
    """Start one of the `daemons`, even after it was killed; it outlives us and the terminal."""
    with (cluster.directory / "log" / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            _command(cluster, name),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=cluster.directory,
            env=_environment(cluster) | {OWNER: cluster.name},
            start_new_session=True,
            umask=0o022,
        )
    _children.append(process)
    return process


def pid(cluster: Cluster, daemon: str) -> int | None:
    """Return the process id of a daemon, or None if it does not run."""
    try:
        number = int((cluster.directory / "run" / f"{daemon}.pid").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return number if number in _processes(cluster) else None


def daemons(cluster: Cluster) -> list[str]:
    """Return the names of all daemons in the order in which they start."""
    accounting = ["mariadbd", "slurmdbd"] if cluster.accounting else []
    return ["munged", *accounting, "slurmctld", *cluster.node_names]


def _steps(cluster: Cluster) -> Iterable[tuple[str, list[str], Callable[[], bool]]]:
    """Yield the steps of the start: description, daemons to start, and a check for success."""
    directory, nodes = cluster.directory, cluster.node_names
    run = directory / "run"

    def succeeds(*command: str) -> Callable[[], bool]:
        return lambda: ask(cluster, *command).returncode == 0

    def idle() -> bool:
        # a short timeout: while sinfo retries, an end of slurmctld would go unnoticed
        answer = ask(cluster, "sinfo", "-h", "-p", "low", "-N", "-o", "%T", timeout=2)
        return answer.stdout.split() == ["idle"] * len(nodes)

    def recorded() -> bool:
        return "COMPLETED" in ask(cluster, "sacct", "-X", "-n", "-o", "state").stdout

    yield "munge", ["munged"], succeeds("munge", "-n", "-S", f"{run}/munge.sock")
    if cluster.accounting:
        yield "database files", [], lambda: _make_database(cluster)
        options = f"--defaults-file={directory}/client.cnf"
        yield "database", ["mariadbd"], succeeds("mariadb", options, "slurm", "-e", "select 1")
        # slurmdbd must know the name before slurmctld registers with it
        add = ("sacctmgr", "-i", "add", "cluster", cluster.name)
        yield "accounting", ["slurmdbd"], succeeds(*add)
    yield "nodes", ["slurmctld", *nodes], idle
    job = ("srun", f"-N{len(nodes)}", "--mem=1", "--job-name=first", "true")
    yield "a job on all nodes", [], succeeds(*job)
    if cluster.accounting:
        yield "its record", [], recorded


def _make_database(cluster: Cluster) -> bool:
    options = f"--defaults-file={cluster.directory}/database.cnf"
    done = ask(cluster, "mariadb-install-db", options, "--skip-test-db")
    if done.returncode:
        raise Failed(f"mariadb-install-db failed:\n{tail(done.stdout + done.stderr)}")
    return True


def _bring_up(
    cluster: Cluster, what: str, names: list[str], ready: Callable[[], bool], say: Say
) -> None:
    begun = time.monotonic()
    say(f"waiting for {what}")
    started = {name: start(cluster, name) for name in names}
    while not ready():
        for name, process in started.items():
            if process.poll() is not None:
                raise Failed(f"{name} ended; the end of its log:\n{_log(cluster, name)}")
        if time.monotonic() > begun + PATIENCE:
            name = (names or ["slurmctld"])[0]
            raise Failed(
                f"no {what} after {PATIENCE:.0f} s; the end of the log of {name}:\n"
                f"{_log(cluster, name)}"
            )
        time.sleep(POLL)


def _command(cluster: Cluster, name: str) -> list[str]:
    directory = cluster.directory
    if name == "munged":
        return [
            name,
            "--foreground",
            "--force",  # else munged objects to a parent directory that only root may enter
            f"--key-file={directory}/munge.key",
            f"--socket={directory}/run/munge.sock",
            f"--pid-file={directory}/run/munged.pid",
            f"--seed-file={directory}/run/munge.seed",
        ]
    if name == "mariadbd":
        return [name, f"--defaults-file={directory}/database.cnf"]
    if name in cluster.node_names:
        return ["slurmd", "-D", "-N", name]
    return [name, "-D"]


def _processes(cluster: Cluster) -> set[int]:
    """Return the living processes of the cluster: daemons, jobs, all their descendants, clients.

    A job may clear its environment, so descendants count whatever their environment says. Only a
    process that cleared its environment and lost its parents is not found. The calling process and
    its ancestors are left out, because they may be part of a job of this very cluster.
    """
    mark, conf = f"{OWNER}={cluster.name}", f"SLURM_CONF={cluster.conf}"
    parents: dict[int, int] = {}
    found: set[int] = set()
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            name, state, parent = _stat(directory)
            if state in "ZX":  # a zombie is not alive, though kill(2) can reach it
                continue
            number = int(directory.name)
            parents[number] = parent
            environment = (directory / "environ").read_bytes().decode(errors="replace").split("\0")
            if mark in environment or (name in CLIENTS and conf in environment):
                found.add(number)
    found |= {number for number in parents if not found.isdisjoint(_ancestors(number, parents))}
    return found - set(_ancestors(os.getpid(), parents))


def _stat(directory: Path) -> tuple[str, str, int]:
    """Return name, state and parent of a process, from its directory in /proc."""
    name, rest = (directory / "stat").read_text(encoding="utf-8").split("(", 1)[1].rsplit(")", 1)
    state, parent = rest.split()[:2]
    return name, state, int(parent)


def _ancestors(number: int, parents: dict[int, int]) -> Iterable[int]:
    """Yield a process and its ancestors."""
    while number in parents:
        yield number
        number = parents[number]


def _end(cluster: Cluster) -> bool:
    """Kill processes until none is left; return whether there was any."""
    until = time.monotonic() + PATIENCE
    some = False
    while pids := _processes(cluster):
        if time.monotonic() > until:
            raise Failed(f"processes that do not end: {sorted(pids)}; {cluster.directory} is kept")
        some = True
        for number in pids:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(POLL)
        _reap()
    return some


def _reap() -> None:
    """Reap the ended daemons that are children of this process."""
    _children[:] = [process for process in _children if process.poll() is None]


def _environment(cluster: Cluster) -> dict[str, str]:
    """Return this process's environment for `cluster`, without variables of another SLURM."""
    kept = {key: value for key, value in shell.clean().items() if key not in shell.KEPT}
    return kept | cluster.environment


def ask(
    cluster: Cluster, *command: str, timeout: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Run a command of SLURM or MariaDB that talks to this cluster, whatever it returns."""
    return call(*command, environment=_environment(cluster), timeout=timeout)


def _log(cluster: Cluster, name: str) -> str:
    with suppress(OSError):
        return tail(
            (cluster.directory / "log" / f"{name}.log").read_text(
                encoding="utf-8", errors="replace"
            )
        )
    return "    (none)"
