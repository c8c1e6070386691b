"""Test the GPU campaign: its sections at small size on a CPU, failing sections, its summary."""

import json
import subprocess
import sys
import warnings

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_campaign import card, summary
from benchmarks.gpu_campaign.report import Report, Request, read
from tests.launcher import PROJECT

MINIATURE = """
import sys, time
from pathlib import Path
from benchmarks import gpu
from benchmarks.gpu_campaign.report import Request
out = Path(sys.argv[1])
request = Request(out=out, until=time.time() + 600, small=True, data=out, reference=None, commit="abc")
for name in ("steps", "grown", "costs"):
    gpu.run(name, request)
"""
QUICK = {"TORCH_COMPILE_DISABLE": "1", "OMP_NUM_THREADS": "1"}


def request(out, minutes=12.0):
    return Request(
        out=out, until=gpu.time.time() + 60 * minutes, small=False, data=out, reference=None,
        commit=None,
    )  # fmt: skip


@pytest.mark.long
def test_the_loops_run_in_miniature(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MINIATURE, str(tmp_path)], cwd=PROJECT, capture_output=True,
        text=True, timeout=300, env={**gpu.os.environ, **QUICK},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps, grown, costs = (read(tmp_path, name) for name in ("steps", "grown", "costs"))
    assert steps["commit"] == "abc" and steps["small"]
    assert "torch" in steps["machine"]
    assert not steps["skipped"] and not grown["skipped"] and not costs["skipped"]
    ours = steps["results"]["vgg_small compiled"]["faster"]
    assert ours.keys() >= {
        "ours+channels_last+compile / bare+channels_last+compile",
        "ours+channels_last+compile / timm+channels_last+compile",
    }
    branches = grown["results"]["vgg_small"]["loops"]
    assert branches["grown, batchnorm"]["parameters"] > branches["dbb"]["parameters"]
    assert branches["dbb"]["parameters"] > branches["plain"]["parameters"]
    assert (
        costs["results"]["checkpoint"]["sealed_ms"] > costs["results"]["checkpoint"]["held_up_ms"]
    )
    for form in ("batchnorm", "linear"):
        assert (
            costs["results"][f"vgg_small growth method.form={form}"]["milliseconds"]["adjust"] > 0
        )


@pytest.mark.parametrize(
    ("code", "limit", "expected"),
    [
        ("raise RuntimeError('no kernel')", 60, "exit code 1: RuntimeError: no kernel"),
        ("import os; os.abort()", 60, "killed by SIGABRT"),
        ("print('step 3', flush=True); import time; time.sleep(60)", 1, "ended after 1 s: step 3"),
    ],
)
def test_a_section_that_fails_is_reported_and_keeps_its_results(
    tmp_path, monkeypatch, code, limit, expected
):
    Report(request(tmp_path), "steps").add("resnet18", {"images_per_s": 1})
    monkeypatch.setattr(gpu, "SECTIONS", {"steps": (0, limit)})
    monkeypatch.setattr(gpu, "command", lambda *_: [sys.executable, "-c", code])
    assert expected in gpu.supervised("steps", request(tmp_path))
    found = read(tmp_path, "steps")
    assert expected in found["error"]
    assert found["results"] == {"resnet18": {"images_per_s": 1}}


def test_a_section_that_needs_more_time_than_is_left_is_not_started(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "command", lambda *_: pytest.fail("the section was started"))
    assert gpu.supervised("steps", request(tmp_path, minutes=0.1)).startswith("not begun: it takes")
    assert "not begun" in read(tmp_path, "steps")["error"]


def test_after_a_failure_the_other_sections_run_and_the_exit_code_is_1(
    tmp_path, monkeypatch, capsys
):
    codes = {"grown": "raise SystemExit(3)", "costs": "pass"}
    monkeypatch.setattr(gpu, "command", lambda name, *_: [sys.executable, "-c", codes[name]])
    monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path), "--only", "grown", "costs"])
    assert gpu.main() == 1
    assert "costs: done" in capsys.readouterr().out
    assert "exit code 3" in (tmp_path / "summary.md").read_text()


DRIVER = """#!/bin/sh
case "$*" in *--loop-ms=*) while true; do echo "$ROW"; sleep 0.01; done;; *) echo "$ROW";; esac
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Put a stand-in for `nvidia-smi` on the PATH; return a function to set the row it prints."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text(DRIVER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{gpu.os.environ['PATH']}")
    return lambda row: monkeypatch.setenv("ROW", row)


def test_the_state_of_the_card_is_sampled_during_a_measurement(driver):
    driver("1980, 3201, 512.25, 61, [N/A]")
    with card.sampled() as sample:
        gpu.time.sleep(0.2)
    assert sample["clocks.sm"] == [1980.0] * 3
    assert sample["power.draw"] == [512.25] * 3
    assert "utilization.gpu" not in sample
    driver("NVIDIA H200, 580.1, 143771 MiB, 700.00 W, 1980 MHz, 3201 MHz")
    assert card.named()["driver_version"] == "580.1"


def test_a_machine_without_driver_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with card.sampled() as sample:
        pass
    assert (sample, card.named(), card.now()) == ({}, {}, {})


def test_waits_for_the_gpu_are_counted_by_line_of_code(monkeypatch):
    from benchmarks.gpu_campaign import measure

    modes = []
    monkeypatch.setattr(measure, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def loop(steps):
        for step in range(steps):
            if step % 2:
                warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("does not yet detect all synchronizing operations", stacklevel=1)

    found = measure.synchronisations(loop, 10)
    assert (found["waits"], found["per_step"]) == (5, 0.5)
    assert list(found["places"].values()) == [5]
    assert modes == ["warn", "default"]


def result(out, section, results, small=False):
    facts = {"date": "2026", "small": small, "results": results, "skipped": {}}
    (out / f"{section}.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("watching", "small", "met"), [(0.4, False, True), (2.5, False, False), (0.4, True, None)]
)
def test_targets_are_judged_by_what_was_measured(tmp_path, watching, small, met):
    result(tmp_path, "costs", {"resnet18": {"watching_percent": watching}, "growth": {}}, small)
    rows = {row["section"]: row for row in summary.lines(tmp_path)}
    assert (rows["costs"]["found"], rows["costs"]["met"]) == (watching, met)
    assert rows["checks"]["found"] is None and rows["checks"]["met"] is None


def test_our_fastest_loop_is_named(tmp_path):
    speeds = {"bare+compile": 9e9, "ours": 2000.0, "ours+channels_last": 2900.0}
    rates = {name: {"median": value} for name, value in speeds.items()}
    result(tmp_path, "steps", {"resnet50": {"images_per_s": rates, "loops": {}}})
    (row,) = [row for row in summary.lines(tmp_path) if row["of"].startswith("resnet50")]
    assert (row["of"], row["found"], row["met"]) == ("resnet50: ours+channels_last", 2900.0, True)
