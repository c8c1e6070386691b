"""Check this machine for a development cluster: root, packages, a host name with an address."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

PACKAGES = {
    "munge": ("munged", "munge"),
    "slurm-wlm": ("slurmctld", "slurmd", "srun", "sinfo"),
}
ACCOUNTING_PACKAGES = {
    "slurmdbd": ("slurmdbd",),
    "mariadb-server": ("mariadbd", "mariadb-install-db", "mariadb"),
}
ACCOUNTING_PLUGIN = "slurm*/accounting_storage_mysql.so"  # in /usr/lib, or in a directory of it


class BadInput(Exception):
    """Bad input, in one line: what is wrong, where, and the cure. Exit code 2."""


class Failed(Exception):
    """The cluster failed. Exit code 1; the message holds the end of the daemon's log."""


def check_machine(accounting: bool) -> None:
    """Raise `BadInput` if this machine cannot run a cluster."""
    check_root()
    if absent := missing(accounting):
        raise BadInput(
            f"packages missing: {' '.join(absent)}; add --install, or as root: "
            f"apt-get install --no-install-recommends {' '.join(absent)}"
        )
    host = host_name()
    try:
        socket.gethostbyname(host)
    except OSError:
        raise BadInput(
            f"the name of this machine, {host}, has no address; "
            f"echo '127.0.0.1 {host}' >> /etc/hosts"
        ) from None


def check_root() -> None:
    """Raise `BadInput` if this process does not run as root."""
    if os.geteuid() != 0:
        raise BadInput(
            "not root; the daemons of a cluster run as root (they start jobs, devices are made "
            "for them): use sudo, or a container"
        )


def missing(accounting: bool = True) -> list[str]:
    """Return the Debian packages that a cluster needs and this machine lacks."""
    wanted = PACKAGES | (ACCOUNTING_PACKAGES if accounting else {})
    absent = [
        package
        for package, programs in wanted.items()
        if any(shutil.which(program, path=search_path()) is None for program in programs)
    ]
    if accounting:
        library = Path("/usr/lib")
        plugins = [*library.glob(ACCOUNTING_PLUGIN), *library.glob(f"*/{ACCOUNTING_PLUGIN}")]
        absent += [] if plugins else ["slurm-wlm-mysql-plugin"]
    return absent


def version() -> tuple[int, int]:
    """Return the version of the installed SLURM, e.g. (24, 11).

    Raises:
        Failed: slurmd does not print its version.
    """
    answer = call("slurmd", "-V", environment=os.environ | {"PATH": search_path()}, timeout=10)
    match = re.search(r"(\d+)\.(\d+)", answer.stdout)
    if match is None:
        raise Failed(f"slurmd -V prints no version:\n{tail(answer.stdout + answer.stderr)}")
    return int(match[1]), int(match[2])


def install(accounting: bool = True) -> None:
    """Install missing packages with apt-get, without starting any service.

    Raises:
        BadInput: the user is not root, or there is no apt-get.
        Failed: apt-get did not succeed.
    """
    absent = missing(accounting)
    if not absent:
        return
    check_root()
    if shutil.which("apt-get") is None:
        raise BadInput(
            f"--install needs apt-get, not found here; install by hand: {' '.join(absent)}"
        )
    policy = Path("/usr/sbin/policy-rc.d")  # Debian runs it before it starts a service
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
        policy.chmod(0o755)
    try:
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", *absent)
    finally:
        if ours:
            policy.unlink()


def _apt_get(*arguments: str) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = call("apt-get", "--quiet", *arguments, environment=environment, timeout=1800)
    if done.returncode:
        raise Failed(f"apt-get {arguments[0]} failed:\n{tail(done.stdout + done.stderr)}")


def call(
    *command: str, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a command; it has failed if it does not end within `timeout` seconds."""
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


def tail(text: str, lines: int = 15) -> str:
    """Return the last lines of a program's output, indented for a message."""
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[-lines:])


def search_path() -> str:
    """Return PATH with the directories of daemons, which a user's PATH often lacks."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def host_name() -> str:
    """Return the name of this machine, without its domain."""
    return socket.gethostname().split(".")[0]
