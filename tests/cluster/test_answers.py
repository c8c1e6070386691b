"""Test that jobs in every state are read alike from SLURM's JSON and from its text."""

import functools
import re
from pathlib import Path

import pytest

from slurm import scheduler
from tests.cluster.job_under_test import preempt
from tests.cluster.real import call, needs_slurm, wait_for

pytestmark = [pytest.mark.cluster, needs_slurm]

ODD = "a|b\n\"two\"\t'three' \\n {é} 日本 \udcff $HOME %j"  # \udcff stands for an invalid byte
IRREGULAR = "0,3,7,12-15,30,41,55,67,68,70,90,93,101,103,109,111,115,119,121,127,200,205,231"


@pytest.fixture(autouse=True)
def only_these(cluster):
    """Cancel the jobs of each test after it, and let the next test request JSON again."""
    yield
    call("scancel", "--me")
    wait_for(lambda: not call("squeue", "--me", "--noheader"))
    scheduler._text_only.clear()


@pytest.fixture
def with_json(cluster):
    if not scheduler._has_json():
        pytest.skip("the JSON of this version of SLURM is not used")


def submit(*options, command="sleep 100"):
    return call("sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={command}")


@pytest.mark.parametrize("elements", [(0, 12, 3), (0, 15, 3), (1, 11, 2), (1, 13, 2), (5, 100, 1)])
def test_no_element_of_an_array_is_left_out(elements):
    first, last, step = elements  # squeue --array prints all but the last of 0-15:3 and 1-13:2
    array = submit("--hold", f"--array={first}-{last}:{step}")
    found = {id for id in scheduler.user_jobs() if id.startswith(f"{array}_")}
    assert found == {f"{array}_{element}" for element in range(first, last + 1, step)}


def in_text(ask):
    scheduler._text_only.update(("squeue", "sacct"))
    found = ask()
    scheduler._text_only.clear()
    return found


def in_json(ask):
    found = ask()
    assert not scheduler._text_only
    return found


def same(ask=scheduler.user_jobs):
    """Return the jobs on which two text answers agree; fail if the JSON between them differs."""
    before, found, after = in_text(ask), in_json(ask), in_text(ask)
    still = {id: entry for id, entry in before.items() if after.get(id) == entry}
    assert {id: found.get(id) for id in still} == still
    assert before.keys() & after.keys() <= found.keys() <= before.keys() | after.keys()
    return still


def reach(states):
    """Compare text and JSON until each job has been in the state given for it."""
    missing = dict(states)

    def all_seen():
        for id, entry in same().items():
            if missing.get(id) == entry.state:
                del missing[id]
        return not missing

    try:
        wait_for(all_seen)
    finally:
        assert not missing


def test_text_and_json_agree_on_pending_jobs(with_json):
    running = submit("--comment", ODD, "--job-name", ODD)
    options = {
        "hold": ["--hold"],
        "later": ["--begin=now+1hour"],
        "after": [f"--dependency=afterok:{running},afternotok:{running}", "--no-requeue"],
        "either": [f"--dependency=afterok:{running}?afterany:{running}"],
        "steps": ["--array=3-199:2%2"],
        "irregular": [f"--array={IRREGULAR}", f"--dependency=afterany:{running}"],
    }
    ids = {name: submit(*words) for name, words in options.items()}
    submit("--ntasks=1", ":", "--ntasks=1")  # one job of two parts, 12+0 and 12+1
    ids["corresponding"] = submit("--array=3-199:2", f"--dependency=aftercorr:{ids['steps']}")
    call("scontrol", "hold", f"{ids['steps']}_9")
    call("scancel", f"{ids['irregular']}_90")
    reach({running: "RUNNING", ids["hold"]: "PENDING", f"{ids['steps']}_5": "RUNNING"})
    call("scontrol", "update", f"JobId={running}", "TimeLimit=UNLIMITED")
    found = same()
    assert found[running].comment == ODD.replace("\udcff", "\ufffd")
    assert (found[running].limit, found[running].end) == (None, None)
    assert found[f"{ids['corresponding']}_11"].after == (f"{ids['steps']}_11",)
    assert len([id for id in found if id.startswith(f"{ids['steps']}_")]) == 99
    of = (
        running,
        f"{ids['steps']}_3",
        f"{ids['steps']}_9",
        f"{ids['steps']}_199",
        f"{ids['irregular']}_231",
        f"{ids['irregular']}_205",
    )
    assert same(lambda: scheduler.known([*of, "99999"])).keys() == set(of)
    for id in of:
        assert in_json(functools.partial(scheduler.find, id)) == found[id]
    assert in_json(functools.partial(scheduler.find, "99999")) is None


def test_text_and_json_agree_on_stopped_requeued_and_held_jobs(with_json):
    names = ("suspended", "stopped", "held", "special", "requeued", "late", "trapping")
    ids = {name: submit() for name in names[:-1]}
    ids["trapping"] = submit(command="trap '' TERM; sleep 100 & wait; sleep 100")
    reach(dict.fromkeys(ids.values(), "RUNNING"))
    call("scontrol", "suspend", ids["suspended"])
    call("scancel", "--signal=STOP", ids["stopped"])
    call("scontrol", "requeuehold", ids["held"])
    call("scontrol", "requeuehold", "State=SpecialExit", ids["special"])
    call("scontrol", "requeue", ids["requeued"])
    call("scontrol", "update", f"JobId={ids['late']}", "EndTime=now+1")
    call("scancel", ids["trapping"])
    reach(
        {
            ids["suspended"]: "SUSPENDED", ids["stopped"]: "STOPPED", ids["held"]: "PENDING",
            ids["special"]: "SPECIAL_EXIT", ids["requeued"]: "PENDING", ids["trapping"]: "COMPLETING",
        }
    )  # fmt: skip
    reach({ids["trapping"]: "CANCELLED", ids["requeued"]: "RUNNING", ids["late"]: "TIMEOUT"})
    found = same()
    assert found[ids["requeued"]].restarts == 1
    assert found[ids["held"]].held
    assert found[ids["special"]].held


def test_text_and_json_agree_on_jobs_that_have_ended(with_json, partition, monkeypatch, tmp_path):
    partition(PreemptMode="CANCEL", GraceTime=0)
    ids = {
        "COMPLETED": submit(command="true"),
        "FAILED": submit(command="kill -9 $$"),
        "NODE_FAIL": submit("--no-requeue", "--nodelist=n4"),
        "CANCELLED": submit("--hold"),
        "PREEMPTED": submit("--nodelist=n3"),
    }
    reach({ids["NODE_FAIL"]: "RUNNING", ids["PREEMPTED"]: "RUNNING"})
    call("scancel", ids["CANCELLED"])
    call("scontrol", "update", "NodeName=n4", "State=DOWN", "Reason=test")
    call("scontrol", "update", "NodeName=n4", "State=RESUME")
    preempt(tmp_path)
    states = {id: state for state, id in ids.items()}
    reach(states)
    assert same()[ids["FAILED"]].signal == 9
    monkeypatch.setattr(scheduler, "find", lambda id: None)  # so that accounting is asked
    for id, state in (states | {"99999": None}).items():
        ask = functools.partial(scheduler.end, id)
        assert (in_text(ask), in_json(ask)) == (state, state)


def use(cluster, tmp_path, monkeypatch, setting):
    """Let SLURM's commands read the cluster's configuration with one more setting."""
    conf = tmp_path / "slurm.conf"
    conf.write_text(f"{cluster.conf.read_text()}\n{setting}\n")
    monkeypatch.setenv("SLURM_CONF", str(conf))


def plugins(pattern):
    (folder,) = re.findall(r"PluginDir *= (.*)", call("scontrol", "show", "config"))
    return set(Path(folder).glob(f"{pattern}.so"))


def test_text_and_json_agree_in_each_format_that_a_site_can_choose(
    with_json, cluster, tmp_path, monkeypatch
):
    submit("--array=0-9:3", "--hold", "--comment", ODD)
    versions = [file.stem.removeprefix("data_parser_") for file in plugins("data_parser_*")]
    assert versions
    for version in versions:
        for more in ("", "+complex", "+fast"):
            chosen = f"DataParserParameters={version.replace('_', '.')}{more}"
            use(cluster, tmp_path, monkeypatch, chosen)
            assert len(same()) >= 4


@pytest.mark.parametrize("plugin", ["serializer_json", "data_parser_*"])
def test_text_is_read_if_slurm_has_no_plugin_for_json(
    with_json, plugin, cluster, tmp_path, monkeypatch
):
    id = submit("--hold")
    folder = tmp_path / "plugins"
    folder.mkdir()
    for file in plugins("*") - plugins(plugin):
        (folder / file.name).symlink_to(file)
    use(cluster, tmp_path, monkeypatch, f"PluginDir={folder}")
    assert scheduler.user_jobs()[id] == scheduler.find(id)
    assert scheduler._text_only == {"squeue"}
