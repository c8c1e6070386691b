"""Run an attempt at a stage that is killed at a random moment, with the processes below it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from benchmarks import PROJECT
from pipeline.records import rundir

MOMENTS = ("start", "step", "save", "validate", "adjust")
VICTIMS = ("rank 0", "other rank", "parent", "all")
PATIENCE = 12.0  # seconds to wait for the chosen moment before killing anyway
ENDING = 120.0  # seconds within which a process must end after a stop signal


class Attempt:
    """One process of `python -m pipeline.run` with all its descendants."""

    def __init__(self, stage: Path) -> None:
        self.stage, self.begun = stage, time.monotonic()
        (stage / "logs").mkdir(exist_ok=True)
        with (stage / "logs" / "chaos.log").open("ab") as log:
            self.process = self._start(log.fileno())

    def _start(self, log: int) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.run", str(self.stage)],
            cwd=PROJECT, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def _ranks(self) -> dict[int, int | None]:
        """Return the rank of each process below, by its process id."""
        return {pid: rank(pid) for pid in children(self.process.pid)}

    def kill(self, chance: random.Random) -> dict | None:
        """Wait for a random moment and kill; return a row about it, None if it ended before."""
        moment, victim = chance.choice(MOMENTS), chance.choice(VICTIMS)
        number = chance.choice([signal.SIGKILL, signal.SIGTERM])
        self._wait_for(moment, chance)
        happened = self.strike(victim, number)
        return {"moment": moment, **happened} if happened else None

    def strike(self, victim: str, number: signal.Signals) -> dict | None:
        """Kill now; return a row about it, None if there is no such process."""
        targets, everyone = self._pids(victim), self._pids("all")
        if self.process.poll() is not None or not targets:
            return None
        step, doing = self._progress()
        for pid in targets:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        code = self.process.wait(ENDING)
        left_behind = alive_after(everyone, ENDING)
        return {
            "victim": victim, "signal": number.name,
            "after_seconds": round(time.monotonic() - self.begun, 2), "step": step,
            "doing": doing, "exit_code": code, "left_behind": left_behind,
            **self._repeated(),
        }  # fmt: skip

    def _repeated(self) -> dict:
        """Return the number of steps of this attempt that the next one has to repeat."""
        events = rows(self.stage / rundir.EVENTS)
        stopped = bool(events) and events[-1]["event"] == "stopped"
        mine = [e for e in events if e["time"] > time.time() - time.monotonic() + self.begun]
        if not any(event["event"] == "first_step" for event in mine):
            return {"repeated": 0, "stopped": stopped}
        done = max((r["step"] for r in rows(self.stage / rundir.HISTORY)), default=0)
        done = max(done, self._progress()[0])
        seals = (self.stage / "checkpoints").glob("step-*.json")
        saved = max((json.loads(seal.read_text())["step"] for seal in seals), default=0)
        return {"repeated": done - saved, "stopped": stopped}

    def _wait_for(self, moment: str, chance: random.Random) -> None:
        until = time.monotonic() + PATIENCE
        if moment == "start":
            time.sleep(chance.uniform(0, 4))
            return
        while time.monotonic() < until and self.process.poll() is None:
            if self._is(moment):
                if moment != "save":
                    time.sleep(chance.uniform(0, 1.0 if moment == "step" else 0.2))
                return
            time.sleep(0.001)

    def _is(self, moment: str) -> bool:
        if moment == "save":
            return any((self.stage / "checkpoints").glob(".step-*"))
        at, doing = self._progress(fresh=True)
        if moment == "step":
            return at > 0
        return doing.endswith({"validate": "validating", "adjust": "adjusting"}[moment])

    def _progress(self, fresh: bool = False) -> tuple[int, str]:
        """Return the step and the activity; with `fresh`, ignore rows of earlier attempts."""
        try:
            row = json.loads((self.stage / rundir.PROGRESS).read_text())
        except (OSError, ValueError):
            return 0, ""
        age = time.time() - row["time"]
        if fresh and age > time.monotonic() - self.begun:
            return 0, ""
        return row["done"], row["text"]

    def _pids(self, victim: str) -> list[int]:
        ranks = self._ranks()
        return {
            "rank 0": [pid for pid, number in ranks.items() if number == 0],
            "other rank": [pid for pid, number in ranks.items() if number],
            "parent": [self.process.pid],
            "all": [self.process.pid, *ranks],
        }[victim]


def alive_after(pids: list[int], seconds: float) -> int:
    """Return the number of processes that still exist after some seconds; usually 0 at once."""
    until = time.monotonic() + seconds
    while alive := [pid for pid in pids if command(pid)]:  # a zombie has no command line
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    return len(alive)


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def rank(pid: int) -> int | None:
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RANK="):
                return int(entry[5:])
    return None


def rows(path: Path) -> list[dict]:
    return list(rundir.read_lines(path))
