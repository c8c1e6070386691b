"""Test `stages.timing.machine`: tuning variables, heat, and other processes on the GPU."""

import pytest

from pipeline.stages.timing import machine


def test_only_tuning_variables_of_the_environment_are_reported(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "7")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    found = machine.tuning()
    assert found["MALLOC_TRIM_THRESHOLD_"] == "7"
    assert "secret" not in found.values()


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
def test_disturbances_from_driver_and_kernel_are_named(before, after, words):
    assert list(machine.disturbed({"time": 0.0} | before, {"time": 10.0} | after)) == [words]


def test_a_driver_without_values_reports_no_disturbance():
    silent = {"time": 0.0, "gpu": {"utilization.gpu": "[N/A]", f"{HELD}sw_thermal_slowdown": ""}}
    assert not list(machine.disturbed(silent, silent | {"time": 1.0}))
    assert not machine.watched(silent) and not machine.watched({"time": 0.0})
    assert machine.watched({"gpu": {"utilization.gpu": "0 %"}})
