"""Test `planning.machine`: a launch where no stage could start is refused and writes nothing."""

import subprocess

import pytest

from pipeline.planning import machine, safety
from tests.launcher import PROJECT


@pytest.mark.parametrize(
    ("kib", "message"),
    [(300_000, "more threads can be started here"), (1_500_000, "torch cannot be loaded here")],
)
def test_too_little_memory_to_start_is_refused(launch, kib, message):
    command = launch.command("name=x", "data=digits", "stage=prep")
    limit = f'ulimit -v {kib}; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", limit, "sh", *command], cwd=PROJECT, capture_output=True, text=True,
        env={"PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert f"ulimit -v is {kib}: raise it" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not launch.root.exists()


def test_the_error_counts_the_threads_that_can_be_started(inside, monkeypatch):
    begun = []

    class Thread(machine.Thread):
        def start(self):
            if len(begun) == 3:
                raise RuntimeError("can't start new thread")
            super().start()
            begun.append(self)

    monkeypatch.setattr(machine, "Thread", Thread)
    code, _, err = inside("name=x", "data=digits")
    assert (code, "error: only 3 more threads can be started here; " in err) == (2, True)
    assert not any(thread.is_alive() for thread in begun)
    assert not inside.root.exists()


def test_without_proc_several_processes_are_refused_and_any_run_gets_a_warning(
    inside, monkeypatch, tmp_path
):
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    safety._warn.cache_clear()
    code, _, err = inside("name=x", "data=digits", "cluster.processes_per_node=2")
    assert (code, "cluster.processes_per_node=2 needs /proc" in err) == (2, True)
    assert err.startswith("warning: /proc cannot be read here")
