"""Define a development cluster, and write the configuration files of its daemons.

`Cluster` has the options; `write_files` writes them, with new ports and secrets, in the notation of
SLURM, munge and MariaDB.
"""

from __future__ import annotations

import dataclasses
import getpass
import os
import random
import re
import secrets
import socket
import stat
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path

from slurm.dev_cluster.machine import BadInput, Failed, host_name, search_path, version

LONGEST = 70  # characters of DIR: a socket's path has at most 107, of which the longest adds 33
NODES, DEVICES = 64, 16  # largest numbers
PORTS = range(10000, 32768)  # below the range that the kernel uses for outgoing connections
NEEDS_NO_CGROUPS = (23, 11)  # since this version, slurmd requires cgroups unless configured not to


def default_directory() -> Path:
    """Return the default directory of a cluster, one per user."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may not know its user
        user = str(os.getuid())
    return Path(tempfile.gettempdir()).resolve() / f"dev_cluster_{user}"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The options of a cluster.

    Args:
        directory: the directory for all files; must not exist, or be empty; closed to others.
        nodes: number of nodes, named n1, n2, ...
        gpus_per_node: number of device files that SLURM hands out as GPUs.
        cpus_per_node: CPUs per node; may exceed this machine's number, which is the default, but
            not less than 4.
        grace: seconds between the signal to a preempted job and its end.
        accounting: whether there are a database and `sacct`.
    """

    directory: Path = dataclasses.field(default_factory=default_directory)
    nodes: int = 2
    gpus_per_node: int = 0
    cpus_per_node: int = dataclasses.field(default_factory=lambda: max(4, os.cpu_count() or 1))
    grace: int = 10
    accounting: bool = True

    def __post_init__(self) -> None:
        path = Path(self.directory).absolute()  # not resolved: a link as last part is refused
        object.__setattr__(self, "directory", path.parent.resolve() / path.name)

    @property
    def conf(self) -> Path:
        """The file that SLURM_CONF must name."""
        return self.directory / "slurm.conf"

    @property
    def name(self) -> str:
        """The name that identifies the cluster on this machine; follows from the directory."""
        return f"dev{zlib.crc32(str(self.directory).encode()):08x}"

    @property
    def node_names(self) -> list[str]:
        """The names of the nodes in SLURM."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a process needs in its environment to use this cluster."""
        return {"SLURM_CONF": str(self.conf), "PATH": search_path()}

    def check(self) -> None:
        """Raise `BadInput` if SLURM does not support such a cluster."""
        directory = self.directory
        if not re.fullmatch(r"/[\w./+-]+", str(directory)) or len(str(directory)) > LONGEST:
            raise BadInput(
                f"--dir {directory}: SLURM cannot take this path; name an absolute one of letters, "
                f"digits and ./+-_, {LONGEST} characters at most"
            )
        for option, value, lowest, highest in (
            ("nodes", self.nodes, 1, NODES),
            ("gpus-per-node", self.gpus_per_node, 0, DEVICES),
            ("cpus-per-node", self.cpus_per_node, 1, 1024),
            ("grace", self.grace, 0, 65533),
        ):
            if not lowest <= value <= highest:
                raise BadInput(f"--{option} {value}: must be from {lowest} to {highest}")


def write_files(cluster: Cluster) -> None:
    """Write all files that the daemons read at their start into the directory.

    Raises:
        BadInput: device files cannot be made on this machine.
        Failed: there are no free ports.
    """
    directory = cluster.directory
    for name in ("log", "run", "database", "state", "spool", "devices"):
        (directory / name).mkdir(mode=0o755)
    for name in cluster.node_names:
        (directory / "spool" / name).mkdir(mode=0o755)
    _make_devices(cluster)
    database, accounting, controller, *nodes = _free_ports(3 + cluster.nodes)
    password = secrets.token_hex(16)
    _write(directory / "munge.key", secrets.token_bytes(128))
    _write(directory / "gres.conf", _gres_conf(cluster))
    if version() >= NEEDS_NO_CGROUPS:
        _write(directory / "cgroup.conf", "CgroupPlugin=disabled\n", mode=0o644)
    _write(cluster.conf, _slurm_conf(cluster, controller, accounting, nodes), mode=0o644)
    if cluster.accounting:
        _write(directory / "database.cnf", _database_conf(cluster, database))
        _write(directory / "database.sql", _database_sql(password))
        _write(directory / "client.cnf", _client_conf(database, password))
        _write(directory / "slurmdbd.conf", _slurmdbd_conf(cluster, accounting, database, password))


def _write(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    """Write a file, by default readable by root alone, as munge and slurmdbd require of secrets."""
    path.touch(mode=mode)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _make_devices(cluster: Cluster) -> None:
    """Make the files that SLURM takes for GPUs: character devices, copies of /dev/null."""
    for number in range(cluster.gpus_per_node):
        try:
            path = cluster.directory / "devices" / f"nvidia{number}"
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except OSError as error:
            raise BadInput(
                f"device files cannot be made in {path.parent}: {error.strerror}; leave out "
                "--gpus-per-node, or give the container the capability MKNOD"
            ) from None


def _gres_conf(cluster: Cluster) -> str:
    if not cluster.gpus_per_node:
        return ""
    files = f"{cluster.directory}/devices/nvidia[0-{cluster.gpus_per_node - 1}]"
    return f"AutoDetect=off\nNodeName=n[1-{cluster.nodes}] Name=gpu File={files}\n"


def _slurm_conf(cluster: Cluster, port: int, accounting_port: int, node_ports: list[int]) -> str:
    directory, host = cluster.directory, host_name()
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
SchedulerParameters=bf_interval=1,sched_interval=1
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
    """Return free ports, drawn at random so that two clusters rarely choose the same."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, 50 * count):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise Failed(f"no {count} free ports from {PORTS.start} to {PORTS.stop - 1}")
