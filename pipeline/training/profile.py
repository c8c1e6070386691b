"""Profile the time of a training step with torch's profiler: `train.profile=STEPS`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pipeline.records import rundir

TRACE, TABLE = "trace.json.gz", "profile.json"
SETTLING = 3  # first steps, which are left out: they allocate memory and choose kernels
WARMUP = 2  # steps that the profiler measures and discards, because its own start disturbs them
ROWS = 40  # operators of the table, the most expensive first


class Profile:
    """Profiles some early steps of a training; writes a trace, and the time of each operator.

    A training that was stopped before all these steps were made profiles as many steps when it
    resumes. A training whose profile is written is not profiled again.

    Args:
        steps: number of steps to profile; None for none.
        folder: stage directory, for `trace.json.gz` (see chrome://tracing) and `profile.json`.
    """

    def __init__(self, steps: int | None, folder: Path) -> None:
        self._steps = 0 if (folder / TABLE).exists() else steps or 0
        self._folder, self._made = folder, 0
        self._profiler: profile | None = None

    def step(self) -> None:
        """Count a step; start or end the profiler when it is time."""
        self._made += 1
        if self._steps and self._made == SETTLING:
            self._profiler = _profiler(self._steps)
            self._profiler.start()
        elif self._profiler:
            self._profiler.step()
            if self._made == SETTLING + WARMUP + self._steps:
                self.end(complete=True)

    def end(self, complete: bool = False) -> None:
        """Stop the profiler; write the measurements if they are `complete`."""
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
