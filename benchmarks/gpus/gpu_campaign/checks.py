"""Run the tests of `tests/gpu`, one after the other, as long as time is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter

from benchmarks import PROJECT
from benchmarks.gpu_campaign.report import Report, Request

WORDS = ("PASSED", "FAILED", "ERROR", "SKIPPED")
SPARE = 10.0  # seconds that are kept for the report


def run(request: Request, report: Report) -> None:
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-v", "-p", "no:cacheprovider", "-rs"]
    process = subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        printed, _ = process.communicate(timeout=max(1.0, request.left() - SPARE))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
    ends = re.findall(rf"^(tests/gpu/\S+::.+?) ({'|'.join(WORDS)})", printed, re.MULTILINE)
    if not ends:
        raise RuntimeError(f"pytest ran no test: {printed.strip().splitlines()[-1]}")
    count = Counter(word for _, word in ends)
    report.add("tests", {
        "passed": count["PASSED"], "failed": count["FAILED"] + count["ERROR"],
        "skipped": count["SKIPPED"], "cut_off": process.returncode not in (0, 1),
        "which_failed": [name for name, word in ends if word in ("FAILED", "ERROR")],
        "printed": printed[-4000:],
    })  # fmt: skip
