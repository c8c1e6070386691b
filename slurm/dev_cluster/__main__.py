"""Run a real SLURM cluster on this one machine, for trying and testing.

Recovery must survive the behaviour of SLURM's own daemons (preemption, requeueing, accounting that
lags), which no imitation has. So this command starts the daemons: munge, MariaDB, slurmdbd,
slurmctld and one slurmd per node, on free ports, beside any other cluster. They outlive the
command; `down` ends them and their jobs, and removes all files that were written:

    DIR/
        dev_cluster.json    the requested cluster; marks the directory as ours
        slurm.conf          and gres.conf, slurmdbd.conf: SLURM's configuration
        database.cnf        and database.sql, client.cnf: MariaDB's
        munge.key           the secret of this cluster
        log/NAME.log        one per daemon: munged mariadbd slurmdbd slurmctld n1 n2 ...
        run/NAME.pid        the same names; and the sockets
        database/ state/ spool/ devices/

Only root can enter DIR, and therefore use the cluster. A DIR that another user made, may write to
or could replace is refused before anything in it is read, because root runs what its files say.

Two partitions share the nodes: `high` preempts `low` (the default) after a grace time, and the jobs
of `low` are requeued. Differences from a production cluster: all nodes are this machine, all
daemons run as root, CPUs and memory are counted but not enforced, GPUs are device files without a
GPU behind them, processes are tracked by parentage and not by cgroups, and munge credentials expire
after 5 s so that a requeued job need not wait 2 minutes. Tried with SLURM 22.05 and 24.11.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from slurm import output
from slurm.dev_cluster.config import Cluster
from slurm.dev_cluster.daemons import ask, daemons, down, pid, up
from slurm.dev_cluster.directory import find, typed
from slurm.dev_cluster.machine import BadInput, Failed, check_root, install, missing


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
        cluster.check()
        say("waiting for apt-get to install packages (minutes)")
        install(cluster.accounting)
    up(cluster, say)
    grace = f"after {cluster.grace} s of grace" if cluster.grace else "without grace"
    print(
        f"ready in {time.monotonic() - begun:.1f} s: {cluster.nodes} nodes with "
        f"{cluster.cpus_per_node} CPUs and {cluster.gpus_per_node} fake GPUs each;\n"
        f"partition low (default) is preempted by partition high {grace}\n"
        f"  use it    export SLURM_CONF={cluster.conf}\n"
        f"  try it    srun --nodes={cluster.nodes} --label printenv SLURMD_NODENAME\n"
        f"            sbatch --partition=high --nodes={cluster.nodes} --exclusive "
        "--output=/dev/null --wrap='sleep 10'   # preempts what runs\n"
        f"  look      {typed('status', cluster.directory)}\n"
        f"  end it    {typed('down', cluster.directory)}"
    )


def _down(arguments: argparse.Namespace) -> None:
    if down(arguments.dir):
        print(f"the cluster in {arguments.dir} is gone")
    else:
        print(f"no cluster in {arguments.dir}; nothing to do")


def _status(arguments: argparse.Namespace) -> None:
    cluster = find(arguments.dir)
    if cluster is None:
        raise Failed(f"no cluster in {arguments.dir}; start one: {typed('up', arguments.dir)}")
    check_root()
    print(f"cluster in {cluster.directory}; export SLURM_CONF={cluster.conf}")
    dead = [name for name in daemons(cluster) if pid(cluster, name) is None]
    if "slurmctld" not in dead and "munged" not in dead:
        print(ask(cluster, "sinfo", "-o", "%.10P %.6a %.6D %.10T %N").stdout.rstrip())
        print(ask(cluster, "squeue", "-o", "%.10i %.10P %.20j %.12T %.10M %.6D %R").stdout.rstrip())
    if dead:
        raise Failed(
            f"not running: {' '.join(dead)}; see {cluster.directory}/log, "
            f"then: {typed('down', cluster.directory)}"
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    usual = Cluster()
    parser = _Parser(
        prog=output.program("slurm.dev_cluster"),
        description=__doc__,
        epilog="Exit codes: 0 done; 1 failed, or something is amiss; 2 bad input; 130 interrupted.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="up|down|status")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> _Parser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        added.add_argument(
            "--dir",
            type=lambda text: Cluster(Path(text)).directory,
            default=usual.directory,
            help="where everything of the cluster is (default: %(default)s)",
        )
        return added

    begin = command("up", _up, "start a cluster and wait until it has run a job; needs root")
    command("down", _down, "end the cluster with all its jobs and remove its directory")
    command("status", _status, "show nodes, partitions and jobs; exit code 1 if anything is amiss")
    for option, default, text in (
        ("--nodes", usual.nodes, "how many nodes"),
        ("--gpus-per-node", usual.gpus_per_node, "fake GPUs on each"),
        ("--cpus-per-node", usual.cpus_per_node, "CPUs of each, may exceed this machine's"),
        ("--grace", usual.grace, "seconds between the signal to a preempted job and its end"),
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
    output.make_safe()
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
        output.deliver()
    except (BadInput, Failed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
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
