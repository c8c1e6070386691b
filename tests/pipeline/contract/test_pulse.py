"""Test `contract.pulse`: heartbeats distinguish a process that hangs from one that was stopped."""

import pytest

from pipeline.contract import pulse


def test_the_limit_between_heartbeats_shrinks_after_a_stop_request(monkeypatch):
    distributed = pytest.importorskip("pipeline.contract.world")
    given, now = [], [0.0]
    monkeypatch.setattr(
        distributed.faulthandler, "dump_traceback_later", lambda limit, exit: given.append(limit)
    )
    monkeypatch.setattr(distributed.time, "monotonic", lambda: now[0])
    here = distributed.World(rank=0, world_size=1, device="cpu", hang_timeout=100)
    here._beat = 0.0
    now[0] = 20.0  # the longest time without a heartbeat
    here.beat()
    here.hurry()
    now[0] = 22.0
    here.beat()
    here.saving()
    assert given == [
        60.0,
        60.0,
        100,
    ]  # no limit before the stop request: until then the parent watches
    impatient = distributed.World(rank=0, world_size=1, device="cpu", hang_timeout=10)
    impatient.hurry()
    assert given[-1] == 10


@pytest.mark.parametrize(
    ("looks", "hangs"),
    [  # per look: seconds since the last one, ranks with a heartbeat, stopped ranks; the limit is 3 s
        ([(0.2, "01", "")] * 20, ""),
        ([(0.2, "0", "")] * 16, "1"),
        ([(0.2, "", "")] * 16, "01"),
        ([(0.2, "", "")] * 14, ""),
        ([(0.2, "0", "1")] * 20, ""),  # rank 1 is stopped, so nothing hangs
        ([(0.2, "", "01"), (60, "", "")], ""),
        ([(60, "", ""), (0.2, "01", "")], ""),  # the parent was stopped as well
        ([(0.2, "", "")] * 10 + [(3600, "", "01")] + [(0.2, "", "")] * 6, "01"),
    ],
)
def test_a_process_that_hangs_is_distinguished_from_one_that_was_stopped(monkeypatch, looks, hangs):
    now, stopped = [0.0], []
    monkeypatch.setattr(pulse.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pulse, "stopped", lambda pid: str(pid) in stopped)
    watch = pulse.Watch(2)
    monkeypatch.setenv(pulse.PULSE, str(watch.file))
    for rank in "01":
        monkeypatch.setenv("LOCAL_RANK", rank)
        pulse.beat(3.0)
    watch.hanging({0: 0, 1: 1})
    for seconds, beating, who in looks:
        stopped[:] = who
        now[0] += seconds
        for rank in beating:
            monkeypatch.setenv("LOCAL_RANK", rank)
            pulse.beat(3.0)
        found = watch.hanging({0: 0, 1: 1})
    assert found == {int(rank): 3.0 for rank in hangs}
    monkeypatch.setenv("LOCAL_RANK", "0")
    pulse.beat(0)  # the process has left
    assert 0 not in watch.hanging({0: 0})
