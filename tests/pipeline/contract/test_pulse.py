"""Heartbeats: who hangs is told from who was stopped."""

import pytest

from pipeline.contract import pulse


def test_how_long_a_process_may_be_silent(monkeypatch):
    distributed = pytest.importorskip("pipeline.contract.world")
    given, now = [], [0.0]
    monkeypatch.setattr(
        distributed.faulthandler, "dump_traceback_later", lambda limit, exit: given.append(limit)
    )
    monkeypatch.setattr(distributed.time, "monotonic", lambda: now[0])
    here = distributed.World(rank=0, world_size=1, device="cpu", hang_timeout=100)
    here._beat = 0.0
    now[0] = 20.0  # its longest silence
    here.beat()
    here.hurry()
    now[0] = 22.0
    here.beat()
    here.saving()
    assert given == [60.0, 60.0, 100]  # before it was asked its parent waits
    impatient = distributed.World(rank=0, world_size=1, device="cpu", hang_timeout=10)
    impatient.hurry()
    assert given[-1] == 10


@pytest.mark.parametrize(
    ("looks", "hangs"),
    [  # of two processes whose patience is 3 s: seconds since the last look, who beat, who is stopped
        ([(0.2, "01", "")] * 20, ""),
        ([(0.2, "0", "")] * 16, "1"),
        ([(0.2, "", "")] * 16, "01"),
        ([(0.2, "", "")] * 14, ""),
        ([(0.2, "0", "1")] * 20, ""),  # 0 waits for who is stopped
        ([(0.2, "", "01"), (60, "", "")], ""),
        ([(60, "", ""), (0.2, "01", "")], ""),  # the parent was stopped as well
        ([(0.2, "", "")] * 10 + [(3600, "", "01")] + [(0.2, "", "")] * 6, "01"),
    ],
)
def test_who_hangs_is_told_from_who_was_stopped(monkeypatch, looks, hangs):
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
    pulse.beat(0)  # it has left
    assert 0 not in watch.hanging({0: 0})
