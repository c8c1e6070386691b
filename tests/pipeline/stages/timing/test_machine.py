"""What is known of the machine beside the times: tuning, heat, others on its GPU."""

import pytest

from pipeline.stages.timing import machine


def test_what_was_tuned_from_outside_is_told_and_nothing_else(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "7")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    told = machine.tuning()
    assert told["MALLOC_TRIM_THRESHOLD_"] == "7"
    assert "secret" not in told.values()


HELD = "clocks_event_reasons_counters."


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({"throttled": 3}, {"throttled": 4}, "the processor was slowed down by heat"),
        ({"gpu": {"utilization.gpu": "34 %"}}, {}, "other processes used 34% of the GPU"),
        ({}, {"gpu": {"utilization.gpu": "7 %"}}, "other processes used 7% of the GPU"),
        (
            {"gpu": {f"{HELD}sw_thermal_slowdown": "100 us"}},
            {"gpu": {f"{HELD}sw_thermal_slowdown": "2000100 us"}},
            "the GPU was slowed down for 20% of the time (sw_thermal_slowdown)",
        ),
    ],
)
def test_what_the_driver_and_the_kernel_say_against_times_is_named(before, after, words):
    assert list(machine.disturbed({"time": 0.0} | before, {"time": 10.0} | after)) == [words]


def test_a_driver_that_tells_nothing_speaks_against_nothing():
    silent = {"time": 0.0, "gpu": {"utilization.gpu": "[N/A]", f"{HELD}sw_thermal_slowdown": ""}}
    assert not list(machine.disturbed(silent, silent | {"time": 1.0}))
    assert not machine.watched(silent) and not machine.watched({"time": 0.0})
    assert machine.watched({"gpu": {"utilization.gpu": "0 %"}})
