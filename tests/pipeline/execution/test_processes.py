"""Test `execution.processes`: the environment of a stage's processes, their meeting and their end."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from pipeline.execution import processes
from slurm.place import Place, unsupervised
from tests.launcher import in_processes, no_longer_than, wait_for

pytestmark = pytest.mark.long

STALE = {
    "NNODES": "2",
    "NODE_RANK": "1",
    "NPROC_PER_NODE": "4",
    "MASTER_ADDR": "192.0.2.1",
    "MASTER_PORT": "29500",
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "3",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "ROLE_RANK": "3",
    "ROLE_WORLD_SIZE": "8",
    "ROLE_NAME": "default",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "PET_NNODES": "2",
    "PET_MASTER_ADDR": "192.0.2.1",
    "PIPELINE_RENDEZVOUS": "tcp://192.0.2.1:29500",
}


def test_variables_that_other_tools_left_in_the_shell_are_ignored(monkeypatch):
    for name, value in STALE.items():
        monkeypatch.setenv(name, value)
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "FRANK", "MY_RANK"):
        monkeypatch.setenv(name, "1")
    processes.forget_others()
    assert STALE.keys() & os.environ.keys() == {"NPROC_PER_NODE"}  # nothing reads this variable
    assert {"CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "FRANK", "MY_RANK"} <= os.environ.keys()


HERE = Place(job="12_3.1", node=1, nodes=2, address="n1", port=20007)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (STALE, None),
        ({"SUPERVISED_JOB": "7.0"}, None),
        ({**STALE, "SUPERVISED_JOB": "7.0", "SUPERVISED_NODE": "1"}, None),
        (HERE.words(Path("/data/stages/train-1")), HERE),
        (HERE.words(Path("/data/stages/../stages/train-1")), HERE),
        (HERE.words(Path("/data/stages/train-1")) | STALE, HERE),
        (HERE.words(Path("/data/stages/train-2")), None),
        (unsupervised(HERE.words(Path("/data/stages/train-1"))), None),
    ],
)
def test_only_variables_of_a_supervisor_for_this_directory_count(environment, expected):
    assert Place.from_environment(Path("/data/stages/train-1"), environment) == expected


@pytest.mark.parametrize(
    ("count", "place", "words"),
    [
        (1, None, {}),
        (1, Place(job="1.0", node=0, nodes=1, address="n1", port=20000), {}),
        (4, None, processes.LOOPBACK),
        (4, Place(job="1.0", node=0, nodes=1, address="n1", port=20000), processes.LOOPBACK),
        (1, HERE, {"PIPELINE_RENDEZVOUS": "tcp://n1:20007/12_3.1"}),
        (
            2,
            Place(job="1.0", node=0, nodes=2, address="fd00::1", port=20000),
            {"PIPELINE_RENDEZVOUS": "tcp://[fd00::1]:20000/1.0"},
        ),
    ],
)
def test_only_processes_on_several_nodes_meet_over_the_network(count, place, words):
    with processes._meeting(count, place) as (found, inherited):
        assert {**words, **found} == found
        assert len(inherited) == ("file:" in found.get("PIPELINE_RENDEZVOUS", ""))
        assert ("PIPELINE_RENDEZVOUS" in found) == (count > 1 or bool(place and place.nodes > 1))


MEETING = """
import json, os
from contextlib import suppress
from pathlib import Path
import torch
from pipeline.contract.world import world

def links():
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            yield os.readlink(file)

def listening():
    own = set(links())
    for family in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/self/net/{family}").read_text().splitlines()[1:]:
            _, address, _, state, *rest = line.split()
            if f"socket:[{rest[5]}]" in own and (state == "0A" or "udp" in family):
                yield address.split(":")[0]

with world(hang_timeout=30) as here:
    value = {"rank": here.rank, "place": (1, None, "é" * here.rank), "none": torch.zeros(0),
             "bits": torch.arange(3, dtype=torch.uint8), "nan": torch.tensor([float("nan")])}
    values = here.gather(value)
    assert [v["rank"] for v in values] == list(range(here.world_size)), values
    assert values[-1]["place"] == (1, None, "é" * (here.world_size - 1)), values
    assert all(v["bits"].equal(value["bits"]) and v["nan"].isnan() for v in values), values
    assert here.from_main(lambda: f"of rank {here.rank}") == "of rank 0"
    assert here.any(here.rank > 0, False) == [here.world_size > 1, False]
    assert here.total(torch.ones(2)).tolist() == 2 * [here.world_size]
    facts = {"size": here.world_size, "group": torch.distributed.is_initialized(),
            "listening": sorted(set(listening()))}
os.write(1, f"{json.dumps(facts)}\\n".encode())
"""


@pytest.mark.parametrize(("count", "reached_on"), [(1, set()), (2, {"0100007F"})])
def test_processes_listen_on_no_address_that_another_machine_reaches(tmp_path, count, reached_on):
    (tmp_path / "meeting.py").write_text(MEETING)
    elsewhere = STALE | {"GLOO_SOCKET_IFNAME": "eth7", "NCCL_SOCKET_IFNAME": "eth7"}
    process = in_processes(tmp_path / "meeting.py", count=count, environment=elsewhere)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["size"] for row in rows] == count * [count]
    assert {row["group"] for row in rows} == {count > 1}
    assert {address for row in rows for address in row["listening"]} == reached_on


RANK_1 = "import os, sys, time; last = os.environ['RANK'] == '1'; "


@pytest.mark.parametrize(
    ("does", "expected"),
    [
        ("os.kill(os.getpid(), 9)", "rank 1 was killed by SIGKILL, by somebody, or by the kernel"),
        ("os.kill(os.getpid(), 11)", "rank 1 was killed by SIGSEGV"),
        ("os.kill(os.getpid(), 15)", "rank 1 was killed by SIGTERM"),
        ("sys.exit(3)", "rank 1 ended with exit code 3"),
        ("1 / 0", "rank 1 ended with exit code 1"),
    ],
)
def test_the_end_of_one_process_ends_the_others_and_is_reported(does, expected):
    code = f"{RANK_1}(lambda: {does})() if last else time.sleep(100)"
    process = in_processes("-c", code, count=3)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith(expected)


def test_processes_that_do_not_end_are_killed_with_their_children(monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    monkeypatch.setattr(processes, "LEFT", 0.5)
    ignores = "import signal; signal.signal(15, signal.SIG_IGN); "
    code = f"{ignores}{RANK_1}os.fork(); sys.exit(last) if last else time.sleep(100)"
    others = processes._children()
    with no_longer_than(60):
        end = processes.run([sys.executable, "-c", code], 2)
    assert (end.rank, end.code) == (1, 1)
    assert processes._children() <= others


WAITING = """
import os, time
from pathlib import Path
from pipeline.contract.world import world

if os.environ["RANK"] == "1":
    time.sleep(100)
Path("waiting").touch()
with world(hang_timeout=100):
    pass
"""


def test_a_signal_ends_a_process_that_waits_for_others_at_once(tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING.replace('"waiting"', repr(f"{tmp_path}/waiting")))
    process = in_processes(tmp_path / "waiting.py")
    wait_for((tmp_path / "waiting").exists, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=25)  # sooner than after `LEAVING` seconds
    assert "was killed by SIGTERM" in errors


STUCK = """
import sys, time
from pathlib import Path
from pipeline.contract import world as distributed

distributed.LEAVING = 0.5
with distributed.world(hang_timeout=100):
    Path(sys.argv[1]).touch()
    time.sleep(100)
"""


SAVING = """
    from pipeline.contract import interrupt
    directory = Path(sys.argv[1]).parent
    while not interrupt.requested():
        time.sleep(0.01)
    (directory / "asked").touch()
    time.sleep(1)
    (directory / "saved").touch()
"""


def test_a_process_that_hangs_ends_soon_after_a_stop_request(tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK)
    process = in_processes(tmp_path / "stuck.py", tmp_path / "begun", count=1)
    wait_for((tmp_path / "begun").exists, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "made no step for 0.5 s" in errors


def test_a_process_suspended_after_a_stop_request_still_has_time_to_save(tmp_path):
    """Time for which a process is stopped, by a suspended job or Ctrl-Z, does not count as hanging."""
    text = STUCK.replace("time.sleep(100)", SAVING).replace("= 0.5", "= 1.5")
    (tmp_path / "saving.py").write_text(text)
    process = in_processes(tmp_path / "saving.py", tmp_path / "begun", count=1)
    wait_for((tmp_path / "begun").exists, process)
    (child,) = processes_below(process.pid)
    process.send_signal(signal.SIGINT)
    wait_for((tmp_path / "asked").exists, process)
    for pid in (process.pid, child):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3)
    for pid in (process.pid, child):
        os.kill(pid, signal.SIGCONT)
    process.communicate(timeout=30)
    assert (tmp_path / "saved").exists()


def processes_below(pid):
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_a_kernel_without_lists_of_children_is_no_failure(monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 2**30)
    assert processes._children() == set()
