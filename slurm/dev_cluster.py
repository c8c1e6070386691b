"""A real SLURM cluster on this one machine, for trying and testing.

What recovery must survive (preemption, requeueing, accounting that lags) is the behaviour of
SLURM's own daemons, which no imitation has. So this starts them: munge, MariaDB, slurmdbd,
slurmctld and one slurmd per node, on free ports, beside any other cluster. They outlive the
command; `down` ends them, and the jobs, and removes everything that was written:

    DIR/
        dev_cluster.json    what was asked for; marks the directory as ours
        slurm.conf          and gres.conf, slurmdbd.conf: SLURM's configuration
        database.cnf        and database.sql, client.cnf: MariaDB's
        munge.key           the secret of this cluster
        log/NAME.log        one per daemon: munged mariadbd slurmdbd slurmctld n1 n2 ...
        run/NAME.pid        the same names; and the sockets
        database/ state/ spool/ devices/

Two partitions share the nodes: `low` (default) is preempted by `high`, after a grace, and its jobs
are requeued. It differs from a production cluster: all nodes are this machine, all daemons run as
root, CPUs and memory are counted but not enforced, GPUs are device files without a GPU behind
them, processes are tracked by parentage and not by cgroups, and munge credentials expire after
5 s so that a requeued job need not wait 2 minutes. Written for and tried with SLURM 22.05.
"""

from __future__ import annotations

import argparse
import dataclasses
import getpass
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

MARK = "dev_cluster.json"
OWNER = "SLURM_CLUSTER_NAME"  # SLURM gives it to jobs, we to daemons: tells whose a process is
CLIENTS = {"srun", "salloc", "sbatch", "scontrol", "squeue", "sinfo", "sacct", "sacctmgr"}
PACKAGES = {
    "munge": ("munged", "munge"),
    "slurm-wlm": ("slurmctld", "slurmd", "srun", "sinfo"),
}
ACCOUNTING_PACKAGES = {
    "slurmdbd": ("slurmdbd",),
    "slurm-wlm-mysql-plugin": (),
    "mariadb-server": ("mariadbd", "mariadb-install-db", "mariadb"),
}
PATIENCE = 60.0  # seconds for each step of coming up
POLL = 0.05  # seconds between two looks
LONGEST = 70  # characters of DIR: a socket's path is limited to 107, the longest adds 33
NODES, DEVICES = 64, 16  # at most
PORTS = range(10000, 32768)  # below those that the kernel gives to outgoing connections

Say = Callable[[str], None]
_children: list[subprocess.Popen[bytes]] = []  # daemons started by this process, to be reaped


class Refused(Exception):
    """Bad input, in one line: what is wrong, where, and the cure. Exit code 2."""


class Failed(Exception):
    """The cluster did not do what it should. Exit code 1; holds the end of the daemon's log."""


def default_directory() -> Path:
    """Return where a cluster lives unless told otherwise: one per user."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may not know its user
        user = str(os.getuid())
    return Path(tempfile.gettempdir()).resolve() / f"dev_cluster_{user}"


def default_cpus() -> int:
    """Return how many CPUs a node has unless told otherwise: this machine's, at least 4."""
    return max(4, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What a cluster is to be.

    Args:
        directory: where everything is written; must not exist, or be empty.
        nodes: how many, named n1, n2, ...
        gpus_per_node: device files that SLURM hands out as GPUs.
        cpus_per_node: may exceed this machine's.
        grace: seconds between the signal to a preempted job and its end.
        accounting: whether there are a database and `sacct`.
    """

    directory: Path = dataclasses.field(default_factory=default_directory)
    nodes: int = 2
    gpus_per_node: int = 0
    cpus_per_node: int = dataclasses.field(default_factory=default_cpus)
    grace: int = 10
    accounting: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory).resolve())

    @property
    def conf(self) -> Path:
        """The file that SLURM_CONF must name."""
        return self.directory / "slurm.conf"

    @property
    def name(self) -> str:
        """Tells clusters on this machine apart; follows from the directory."""
        return f"dev{zlib.crc32(str(self.directory).encode()):08x}"

    @property
    def node_names(self) -> list[str]:
        """The nodes, as SLURM calls them."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use this cluster, beside its own."""
        return {"SLURM_CONF": str(self.conf), "PATH": _path()}


def up(cluster: Cluster, say: Say = lambda line: None) -> None:
    """Start `cluster`; return when a job has run on all of its nodes.

    Raises:
        Refused: this machine or the directory will not do; nothing was written.
        Failed: a daemon did not come up; everything was taken down again.
    """
    _check_input(cluster)
    _check_machine(cluster)
    _claim(cluster)
    try:
        _write_files(cluster)
        for what, names, ready in _steps(cluster):
            _bring_up(cluster, what, names, ready, say)
    except BaseException:
        down(cluster.directory)
        raise


def down(directory: Path) -> bool:
    """End every process of the cluster in `directory` and remove it; return whether there was one.

    Raises:
        Refused: the directory is not a cluster's.
        Failed: a process cannot be ended.
    """
    cluster = Cluster(directory)
    directory = cluster.directory
    ours = (directory / MARK).exists()
    if not ours and directory.exists() and any(directory.iterdir()):
        raise Refused(f"{directory} holds no cluster, nothing was removed; name the right --dir")
    if ours:
        _check_root()
    ended = _end(cluster)
    if ours:
        _remove(directory)
    return ours or ended


def pid(cluster: Cluster, daemon: str) -> int | None:
    """Return the process of a daemon, or None if it does not run."""
    try:
        number = int((cluster.directory / "run" / f"{daemon}.pid").read_text())
    except (OSError, ValueError):
        return None
    return number if number in _processes(cluster) else None


def daemons(cluster: Cluster) -> list[str]:
    """Return the names of all daemons in the order in which they start."""
    accounting = ["mariadbd", "slurmdbd"] if cluster.accounting else []
    return ["munged", *accounting, "slurmctld", *cluster.node_names]


def find(directory: Path) -> Cluster | None:
    """Return the cluster in `directory`, whether or not it is healthy, or None.

    Raises:
        Failed: the file that describes it is damaged.
    """
    with suppress(FileNotFoundError):
        try:
            row = json.loads((directory / MARK).read_text())
            return Cluster(**row | {"directory": directory})
        except (ValueError, TypeError):
            raise Failed(
                f"{directory / MARK} is damaged; "
                f"python -m slurm.dev_cluster down{_option(directory)}"
            ) from None
    return None


def _check_input(cluster: Cluster) -> None:
    directory = cluster.directory
    if not re.fullmatch(r"/[\w./+-]+", str(directory)) or len(str(directory)) > LONGEST:
        raise Refused(
            f"--dir {directory}: SLURM cannot take this path; name an absolute one of letters, "
            f"digits and ./+-_, {LONGEST} characters at most"
        )
    for option, value, lowest, highest in (
        ("nodes", cluster.nodes, 1, NODES),
        ("gpus-per-node", cluster.gpus_per_node, 0, DEVICES),
        ("cpus-per-node", cluster.cpus_per_node, 1, 1024),
        ("grace", cluster.grace, 0, 65533),
    ):
        if not lowest <= value <= highest:
            raise Refused(f"--{option} {value}: must be from {lowest} to {highest}")


def _check_machine(cluster: Cluster) -> None:
    _check_root()
    if absent := missing(cluster.accounting):
        raise Refused(
            f"packages missing: {' '.join(absent)}; add --install, or as root: "
            f"apt-get install --no-install-recommends {' '.join(absent)}"
        )
    host = _host()
    try:
        socket.gethostbyname(host)
    except OSError:
        raise Refused(
            f"the name of this machine, {host}, has no address; "
            f"echo '127.0.0.1 {host}' >> /etc/hosts"
        ) from None


def _check_root() -> None:
    if os.geteuid() != 0:
        raise Refused(
            "not root; the daemons of a cluster run as root (they start jobs, devices are made "
            "for them): use sudo, or a container"
        )


def missing(accounting: bool = True) -> list[str]:
    """Return the Debian packages that a cluster needs and this machine lacks."""
    wanted = PACKAGES | (ACCOUNTING_PACKAGES if accounting else {})
    absent = [
        package
        for package, programs in wanted.items()
        if any(shutil.which(program, path=_path()) is None for program in programs)
    ]
    plugin = "slurm*/accounting_storage_mysql.so"
    if accounting and not any(
        [*Path("/usr/lib").glob(plugin), *Path("/usr/lib").glob(f"*/{plugin}")]
    ):
        absent.append("slurm-wlm-mysql-plugin")
    return absent


def install(accounting: bool = True) -> None:
    """Install what is missing by apt-get, without starting any service.

    Raises:
        Refused: not root, or no apt-get here.
        Failed: apt-get did not succeed.
    """
    absent = missing(accounting)
    if not absent:
        return
    _check_root()
    if shutil.which("apt-get") is None:
        raise Refused(
            f"--install needs apt-get, not found here; install by hand: {' '.join(absent)}"
        )
    policy = Path("/usr/sbin/policy-rc.d")  # Debian asks it before it starts a service
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", *absent)
    finally:
        if ours:
            policy.unlink()


def _apt_get(*arguments: str) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = _call("apt-get", "--quiet", *arguments, environment=environment, timeout=1800)
    if done.returncode:
        raise Failed(f"apt-get {arguments[0]} failed:\n{_tail(done.stdout + done.stderr)}")


def _claim(cluster: Cluster) -> None:
    """Make the directory ours, or refuse."""
    directory = cluster.directory
    again = f"python -m slurm.dev_cluster down{_option(directory)}"
    try:
        directory.mkdir(exist_ok=True)
        if (directory / MARK).exists():
            raise Refused(f"a cluster is in {directory} already; `{again}`, or name another --dir")
        if directory.stat().st_uid != os.geteuid():
            raise Refused(f"{directory} belongs to another user; name another --dir")
        if any(directory.iterdir()):
            raise Refused(f"{directory} is not empty and not a cluster's; name another --dir")
        row = dataclasses.asdict(cluster) | {"directory": str(directory)}
        with (directory / MARK).open("x") as handle:
            json.dump(row, handle, indent=2)
    except OSError as error:
        raise Refused(f"--dir {directory}: {error.strerror}; name another") from None


def _write_files(cluster: Cluster) -> None:
    directory = cluster.directory
    directory.chmod(0o755)  # munge refuses a directory that others may write to
    for name in ("log", "run", "database", "state", "spool", "devices"):
        (directory / name).mkdir(mode=0o755)
    for name in cluster.node_names:
        (directory / "spool" / name).mkdir(mode=0o755)
    _make_devices(cluster)
    database, accounting, controller, *nodes = _free_ports(3 + cluster.nodes)
    password = secrets.token_hex(16)
    _write(directory / "munge.key", secrets.token_bytes(128))
    _write(directory / "gres.conf", _gres_conf(cluster))
    _write(cluster.conf, _slurm_conf(cluster, controller, accounting, nodes), mode=0o644)
    if cluster.accounting:
        _write(directory / "database.cnf", _database_conf(cluster, database))
        _write(directory / "database.sql", _database_sql(password))
        _write(directory / "client.cnf", _client_conf(database, password))
        _write(directory / "slurmdbd.conf", _slurmdbd_conf(cluster, accounting, database, password))


def _write(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    """Write a file; secrets are readable by root alone, as munge and slurmdbd demand."""
    path.touch(mode=mode)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _make_devices(cluster: Cluster) -> None:
    """Make files that SLURM takes for GPUs: it wants character devices, /dev/null is one."""
    for number in range(cluster.gpus_per_node):
        try:
            path = cluster.directory / "devices" / f"nvidia{number}"
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except OSError as error:
            raise Refused(
                f"device files cannot be made in {path.parent}: {error.strerror}; leave out "
                "--gpus-per-node, or give the container the capability MKNOD"
            ) from None


def _gres_conf(cluster: Cluster) -> str:
    if not cluster.gpus_per_node:
        return ""
    files = f"{cluster.directory}/devices/nvidia[0-{cluster.gpus_per_node - 1}]"
    return f"AutoDetect=off\nNodeName=n[1-{cluster.nodes}] Name=gpu File={files}\n"


def _slurm_conf(cluster: Cluster, port: int, accounting_port: int, node_ports: list[int]) -> str:
    directory, host = cluster.directory, _host()
    megabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    gpus = f" Gres=gpu:{cluster.gpus_per_node}" if cluster.gpus_per_node else ""
    nodes = "\n".join(
        f"NodeName={name} NodeAddr=127.0.0.1 NodeHostname={host} Port={node_port} "
        f"CPUs={cluster.cpus_per_node} RealMemory={megabytes}{gpus}"
        for name, node_port in zip(cluster.node_names, node_ports, strict=True)
    )
    accounting = "AccountingStorageType=accounting_storage/none"
    if cluster.accounting:
        accounting = f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={accounting_port}
AccountingStoragePass={directory}/run/munge.sock
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux"""
    return f"""\
ClusterName={cluster.name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its old credential has expired: 6 s like this, else 121 s.
AuthInfo=socket={directory}/run/munge.sock,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/run/slurmctld.pid
SlurmdPidFile={directory}/run/%n.pid
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
# Nodes may have more CPUs than this machine.
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=20
KillWait=10
MinJobAge=3600
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={max(1, megabytes // cluster.cpus_per_node)}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{accounting}
{nodes}
PartitionName=DEFAULT Nodes=ALL MaxTime=1-0 State=UP
PartitionName=low Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={cluster.grace}
PartitionName=high Default=NO PriorityTier=10 PreemptMode=OFF GraceTime=0
"""


def _slurmdbd_conf(cluster: Cluster, port: int, database_port: int, password: str) -> str:
    run = cluster.directory / "run"
    return f"""\
AuthType=auth/munge
AuthInfo=socket={run}/munge.sock
DbdHost=localhost
DbdPort={port}
SlurmUser=root
PidFile={run}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""


def _database_conf(cluster: Cluster, port: int) -> str:
    directory = cluster.directory
    return f"""\
[mariadbd]
user=root
datadir={directory}/database
tmpdir={directory}/database
socket={directory}/run/database.sock
pid-file={directory}/run/mariadbd.pid
init-file={directory}/database.sql
bind-address=127.0.0.1
port={port}
skip-name-resolve
innodb-buffer-pool-size=128M
innodb-log-file-size=64M
innodb-lock-wait-timeout=900
# What a crash of the machine may lose here is of no use after it.
innodb-flush-log-at-trx-commit=0
"""


def _database_sql(password: str) -> str:
    return f"""\
CREATE DATABASE IF NOT EXISTS slurm;
CREATE OR REPLACE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';
GRANT ALL ON slurm.* TO 'slurm'@'127.0.0.1';
"""


def _client_conf(port: int, password: str) -> str:
    return f"[client]\nhost=127.0.0.1\nport={port}\nuser=slurm\npassword={password}\n"


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, drawn at random so that two clusters rarely meet."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, 50 * count):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise Failed(f"no {count} free ports from {PORTS.start} to {PORTS.stop - 1}")


def _steps(cluster: Cluster) -> Iterable[tuple[str, list[str], Callable[[], bool]]]:
    """Yield what to wait for, the daemons to start for it, and how to see that it is there."""
    directory, nodes = cluster.directory, cluster.node_names
    run = directory / "run"

    def succeeds(*command: str) -> Callable[[], bool]:
        return lambda: _slurm(cluster, *command).returncode == 0

    def idle() -> bool:
        # Not patient: while sinfo tries again, nobody sees that slurmctld has ended.
        told = _slurm(cluster, "sinfo", "-h", "-p", "low", "-N", "-o", "%T", timeout=2)
        return told.stdout.split() == ["idle"] * len(nodes)

    def recorded() -> bool:
        return "COMPLETED" in _slurm(cluster, "sacct", "-X", "-n", "-o", "state").stdout

    yield "munge", ["munged"], succeeds("munge", "-n", "-S", f"{run}/munge.sock")
    if cluster.accounting:
        yield "database files", [], lambda: _make_database(cluster)
        options = f"--defaults-file={directory}/client.cnf"
        yield "database", ["mariadbd"], succeeds("mariadb", options, "slurm", "-e", "select 1")
        # The name must be known before slurmctld asks for it.
        add = ("sacctmgr", "-i", "add", "cluster", cluster.name)
        yield "accounting", ["slurmdbd"], succeeds(*add)
    yield "nodes", ["slurmctld", *nodes], idle
    job = ("srun", f"-N{len(nodes)}", "--mem=1", "--job-name=first", "true")
    yield "a job on all nodes", [], succeeds(*job)
    if cluster.accounting:
        yield "its record", [], recorded


def _make_database(cluster: Cluster) -> bool:
    options = f"--defaults-file={cluster.directory}/database.cnf"
    done = _slurm(cluster, "mariadb-install-db", options, "--skip-test-db")
    if done.returncode:
        raise Failed(f"mariadb-install-db failed:\n{_tail(done.stdout + done.stderr)}")
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


def start(cluster: Cluster, name: str) -> subprocess.Popen[bytes]:
    """Start one of the `daemons`, also after it was killed; it outlives us and the terminal."""
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


def _command(cluster: Cluster, name: str) -> list[str]:
    directory = cluster.directory
    if name == "munged":
        files = {"key-file": "munge.key", "socket": "run/munge.sock"}
        files |= {"pid-file": "run/munged.pid", "seed-file": "run/munge.seed"}
        # Forced: it would mind a directory above that only root may enter.
        return [
            name,
            "--foreground",
            "--force",
            *(f"--{k}={directory}/{v}" for k, v in files.items()),
        ]
    if name == "mariadbd":
        return [name, f"--defaults-file={directory}/database.cnf"]
    if name in cluster.node_names:
        return ["slurmd", "-D", "-N", name]
    return [name, "-D"]


def _processes(cluster: Cluster) -> set[int]:
    """Return the living processes of the cluster: daemons, jobs, all their descendants, clients.

    A job may clear its environment, so descendants count whatever theirs says; only a process that
    did so and has lost its parents is not found. Whoever asks is left out, with all its ancestors:
    it may sit in a job of this very cluster.
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
    for number in parents:
        line = set(_ancestors(number, parents))
        if line & found:
            found.add(number)
    return found - set(_ancestors(os.getpid(), parents))


def _stat(directory: Path) -> tuple[str, str, int]:
    """Return name, state and parent of a process, from its directory in /proc."""
    name, rest = (directory / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
    state, parent = rest.split()[:2]
    return name, state, int(parent)


def _ancestors(number: int, parents: dict[int, int]) -> Iterable[int]:
    """Yield a process and those above it."""
    while number in parents:
        yield number
        number = parents[number]


def _end(cluster: Cluster) -> bool:
    """Kill until nothing is left; return whether there was anything."""
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


def _remove(directory: Path) -> None:
    """Remove a cluster's directory, the mark last: what was interrupted can be repeated."""
    for path in sorted(directory.iterdir(), key=lambda path: path.name == MARK):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    directory.rmdir()


def _reap() -> None:
    """Take note of the end of daemons that are children of this process."""
    _children[:] = [process for process in _children if process.poll() is None]


def _environment(cluster: Cluster) -> dict[str, str]:
    """Return this process's environment for `cluster`, without what another SLURM put there."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH"))
    }
    return kept | cluster.environment


def _slurm(
    cluster: Cluster, *command: str, timeout: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    return _call(*command, environment=_environment(cluster), timeout=timeout)


def _call(
    *command: str, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer after {timeout:.0f} s")


def _path() -> str:
    """Return PATH with the directories of daemons, which a user's own often lacks."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _log(cluster: Cluster, name: str) -> str:
    with suppress(OSError):
        return _tail((cluster.directory / "log" / f"{name}.log").read_text(errors="replace"))
    return "    (none)"


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[-lines:])


def _up(arguments: argparse.Namespace) -> None:
    cluster = Cluster(
        arguments.dir,
        arguments.nodes,
        arguments.gpus_per_node,
        arguments.cpus_per_node,
        arguments.grace,
        not arguments.no_accounting,
    )
    begun = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - begun:5.1f} s  {line}", file=sys.stderr, flush=True)

    if arguments.install and missing(cluster.accounting):
        _check_input(cluster)
        say("waiting for apt-get to install packages (minutes)")
        install(cluster.accounting)
    up(cluster, say)
    option = _option(cluster.directory)
    grace = f"after {cluster.grace} s of grace" if cluster.grace else "without grace"
    print(
        f"ready in {time.monotonic() - begun:.1f} s: {cluster.nodes} nodes with "
        f"{cluster.cpus_per_node} CPUs and {cluster.gpus_per_node} fake GPUs each;\n"
        f"partition low (default) is preempted by partition high {grace}\n"
        f"  use it    export SLURM_CONF={cluster.conf}\n"
        f"  try it    srun --nodes={cluster.nodes} --label printenv SLURMD_NODENAME\n"
        "            sbatch --partition=high --output=/dev/null --wrap='sleep 60'\n"
        f"  look      python -m slurm.dev_cluster status{option}\n"
        f"  end it    python -m slurm.dev_cluster down{option}"
    )


def _down(arguments: argparse.Namespace) -> None:
    if down(arguments.dir):
        print(f"the cluster in {arguments.dir} is gone")
    else:
        print(f"no cluster in {arguments.dir}; nothing to do")


def _status(arguments: argparse.Namespace) -> None:
    cluster = find(arguments.dir)
    option = _option(arguments.dir)
    if cluster is None:
        raise Failed(
            f"no cluster in {arguments.dir}; start one: python -m slurm.dev_cluster up{option}"
        )
    _check_root()
    print(f"cluster in {cluster.directory}; export SLURM_CONF={cluster.conf}")
    dead = [name for name in daemons(cluster) if pid(cluster, name) is None]
    if "slurmctld" not in dead and "munged" not in dead:
        print(_slurm(cluster, "sinfo", "-o", "%.10P %.6a %.6D %.10T %N").stdout.rstrip())
        print(
            _slurm(cluster, "squeue", "-o", "%.10i %.10P %.20j %.12T %.10M %.6D %R").stdout.rstrip()
        )
    if dead:
        raise Failed(
            f"not running: {' '.join(dead)}; see {cluster.directory}/log, "
            f"then: python -m slurm.dev_cluster down{option}"
        )


def _option(directory: Path) -> str:
    return "" if directory == default_directory() else f" --dir {directory}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    assert __doc__
    shape: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = _Parser(
        prog="python -m slurm.dev_cluster", description=__doc__, allow_abbrev=False, **shape
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="up|down|status")

    def command(name: str, call: Callable[[argparse.Namespace], None], text: str) -> _Parser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        assert isinstance(added, _Parser)
        added.set_defaults(call=call)
        added.add_argument(
            "--dir",
            type=lambda text: Path(text).resolve(),
            default=default_directory(),
            help="where everything of the cluster is (default: %(default)s)",
        )
        return added

    begin = command("up", _up, "start a cluster and wait until it has run a job; needs root")
    command("down", _down, "end the cluster with all its jobs and remove its directory")
    command("status", _status, "show nodes, partitions and jobs; exit code 1 if anything is amiss")
    for option, default, text in (
        ("--nodes", 2, "how many nodes"),
        ("--gpus-per-node", 0, "fake GPUs on each"),
        ("--cpus-per-node", default_cpus(), "CPUs of each, may exceed this machine's"),
        ("--grace", 10, "seconds between the signal to a preempted job and its end"),
    ):
        text += " (default: %(default)s)"
        begin.add_argument(option, type=int, metavar="N", default=default, help=text)
    begin.add_argument(
        "--no-accounting", action="store_true", help="without MariaDB, slurmdbd and sacct; quicker"
    )
    begin.add_argument(
        "--install", action="store_true", help="first install missing packages by apt-get"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.call(parsed)
    except (Refused, Failed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, Refused) else 1
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}; name another --dir", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was started is taken down again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
