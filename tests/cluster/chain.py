"""Compute a chain of hashes: a light stand-in for a training, which saves and resumes exactly.

`python chain.py DIR STEPS SECONDS [--crash-at N]`: each step takes SECONDS and hashes the result of
the step before, so the last result shows whether a step was lost or repeated. The state is saved
every fifth step, and at SIGTERM or SIGUSR2 before the process exits. If there is DIR/hurry, an
attempt that resumed does not pause between its steps.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

directory, steps, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
crash_at = int(sys.argv[5]) if sys.argv[4:5] == ["--crash-at"] else -1
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
signal.signal(signal.SIGUSR2, lambda *_: stopping.append(1))


def write(name, value):
    temporary = directory / f".{name}.{os.getpid()}"
    temporary.write_text(json.dumps(value))
    temporary.replace(directory / name)


def log(**row):
    job = os.environ["SUPERVISED_JOB"]
    with (directory / "attempts.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.time(), "pid": os.getpid(), "job": job, **row}) + "\n")


saved = directory / "state.json"
state = json.loads(saved.read_text()) if saved.exists() else {"step": 0, "digest": ""}
log(begun=state["step"])
durable = begun = state["step"]
while state["step"] < steps:
    digest = hashlib.sha256(f"{state['digest']} {state['step']}".encode()).hexdigest()
    state = {"step": state["step"] + 1, "digest": digest}
    if state["step"] == crash_at:
        sys.exit(1)
    stop = bool(stopping)  # read once: a later signal stops the next step
    if stop or state["step"] % 5 == 0:
        write("state.json", state)
        durable = state["step"]
    row = {"done": state["step"], "total": steps, "text": "", "time": time.time(), "saved": durable}
    write("progress.json", row)
    if stop:
        for number in (signal.SIGTERM, signal.SIGUSR2):  # Python restores the defaults when it ends
            signal.signal(number, signal.SIG_IGN)
        log(stopped=state["step"])
        sys.exit(75)
    if not (begun and (directory / "hurry").exists()):
        time.sleep(seconds)
log(finished=state["step"])
write("result.json", state)
