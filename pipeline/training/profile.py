"""Where the time of a training step goes: `train.profile=STEPS` asks torch's profiler."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pipeline.records import rundir

TRACE, TABLE = "trace.json.gz", "profile.json"
SETTLING = 3  # steps that are left out: of the first, memory is allocated and kernels are chosen
WARMUP = 2  # steps that the profiler watches and throws away, as its own start disturbs them
ROWS = 40  # operators of the table, the most expensive first


class Profile:
    """Watches some early steps of a training; writes a trace, and what each operator took.

    A training that was stopped before it had them all watches as many when it goes on; one that
    has them written is not watched again.

    Args:
        steps: How many; None for none.
        folder: Stage directory, for `trace.json.gz` (of chrome://tracing) and `profile.json`.
    """

    def __init__(self, steps: int | None, folder: Path) -> None:
        self._steps = 0 if (folder / TABLE).exists() else steps or 0
        self._folder, self._made = folder, 0
        self._profiler: profile | None = None

    def step(self) -> None:
        """Note that a step was made."""
        self._made += 1
        if self._steps and self._made == SETTLING:
            self._profiler = _profiler(self._steps)
            self._profiler.start()
        elif self._profiler:
            self._profiler.step()
            if self._made == SETTLING + WARMUP + self._steps:
                self.end(complete=True)

    def end(self, complete: bool = False) -> None:
        """Watch no longer; write what was seen if that is `complete`."""
        if profiler := self._profiler:
            self._profiler = None
            seen = min(self._steps, self._made - SETTLING - WARMUP)
            profiler.stop()
            if complete and seen > 0:
                self._write(profiler, seen)

    def _write(self, profiler: profile, steps: int) -> None:
        profiler.export_chrome_trace(str(self._folder / TRACE))
        rows = [
            {
                "operator": one.key,
                "calls": one.count / steps,
                "cpu_ms": one.self_cpu_time_total / 1000 / steps,
                "gpu_ms": one.self_device_time_total / 1000 / steps,
            }
            for one in profiler.key_averages()
            if not one.key.startswith("ProfilerStep")
        ]
        rows.sort(key=lambda row: -max(row["cpu_ms"], row["gpu_ms"]))
        table = {"steps": steps, "operators": rows[:ROWS], "left_out": len(rows[ROWS:])}
        rundir.write_json(self._folder / TABLE, table)


def _profiler(steps: int) -> profile:
    kinds = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        kinds.append(ProfilerActivity.CUDA)
    plan = schedule(wait=0, warmup=WARMUP, active=steps + 1, repeat=1)  # ended by `Profile`
    return profile(activities=kinds, schedule=plan)
