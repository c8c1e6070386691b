"""Run the GPU campaign: measure everything that the project claims about GPUs, by one command.

    python -m benchmarks.gpu OUT                                  # all sections, 12 minutes at most
    python -m benchmarks.gpu OUT --only steps grown --minutes 9   # some sections, in less time
    python -m benchmarks.gpu OUT --small                          # in miniature, even on a CPU

The sections, most important first; each is a file in `gpu_campaign/`:

    steps      a training step of bare torch, ours and timm's: images/s, memory, waits for the GPU
    grown      a step with branches on every convolution, beside plain, DBB, the published code
    costs      the costs of watching saliency, of one growth and of one checkpoint
    resume     trainings that are killed and resumed, compared bit by bit; bfloat16 and float16
    whole      whole trainings on Fashion-MNIST: seconds to 93 %, methods at equal cost
    inference  latency: fused, compiled, CUDA graphs, bfloat16
    checks     tests/gpu

Each section runs in a process of its own, with a time limit, and rewrites OUT/SECTION.json after
every number that it has found. A section that crashes, hangs or runs out of memory does not affect
the others. A section that no longer fits into the minutes is not begun, and reported as such.
OUT/summary.md has each target and whether it was met. It is written after each section, from all
files in OUT, whenever they were made; `--only` without a name writes only the summary.

Compared loops are timed in turn in one process (A B A B …); a ratio is the median over rounds.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import PROJECT
from benchmarks.gpu_campaign import summary
from benchmarks.gpu_campaign.report import SECTIONS, Report, Request, read

TAIL = 3000  # characters of a failed section's output that are kept


def main() -> int:
    options = parser().parse_args()
    request = Request(
        out=options.out.resolve(), until=time.time() + 60 * options.minutes, small=options.small,
        data=options.data, reference=options.reference, commit=options.commit,
    )  # fmt: skip
    if options.section:
        return run(options.section, request)
    request.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        print(f"{name}: {supervised(name, request)}", flush=True)
        summary.write(request.out)
    summary.write(request.out)
    summary.show(request.out)
    return 0 if all("error" not in (read(request.out, name) or {}) for name in options.only) else 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("out", type=Path, metavar="OUT", help="folder of the results")
    made.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    made.add_argument("--minutes", type=float, default=12.0, help="that all of it may take")
    made.add_argument("--small", action="store_true", help="tiny networks, two rounds: a rehearsal")
    made.add_argument(
        "--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), metavar="DIR",
        help="the four files of Fashion-MNIST, as in Debian's package dataset-fashion-mnist",
    )  # fmt: skip
    made.add_argument(
        "--reference", type=Path, metavar="DIR", help="checkout of the published code, see grown"
    )
    made.add_argument("--commit", help="what is measured, where the checkout has no .git")
    made.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    return made


def supervised(name: str, request: Request) -> str:
    """Run a section in a process of its own; return a text about its end."""
    fewest, most = SECTIONS[name]
    limit = request.left() if request.small else min(most, request.left())
    report = Report(request, name)
    if limit < fewest and not request.small:
        report.fail(f"not begun: it takes {fewest} s or more, and {limit:.0f} s were left")
        return report.facts["error"]
    begun = time.monotonic()
    with (request.out / f".{name}.log").open("w+b") as log:
        code = finished(command(name, request, limit), log, limit)
        printed = tail(log.fileno())
    (request.out / f".{name}.log").unlink()
    seconds = time.monotonic() - begun
    if code == 0:
        return f"done in {seconds:.0f} s"
    report.facts = read(request.out, name) or report.facts
    how = f"ended after {limit:.0f} s" if code is None else ended(code)
    report.fail(
        f"{how}: {printed.strip().splitlines()[-1] if printed.strip() else 'no word'}", printed
    )
    return report.facts["error"]


def command(name: str, request: Request, seconds: float) -> list[str]:
    """Return the command line of a section that has so many seconds."""
    words = [sys.executable, "-m", "benchmarks.gpu", str(request.out), "--section", name]
    words += ["--minutes", f"{seconds / 60:.3f}", "--data", str(request.data)]
    words += ["--small"] if request.small else []
    words += ["--reference", str(request.reference)] if request.reference else []
    return [*words, "--commit", request.commit] if request.commit else words


def finished(words: list[str], log, seconds: float) -> int | None:
    """Run a command; return its exit code, or None if it and its processes had to be ended."""
    process = subprocess.Popen(
        words, cwd=PROJECT, stdout=log, stderr=log, start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def tail(descriptor: int) -> str:
    """Return the end of the output."""
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, TAIL, max(0, size - TAIL)).decode(errors="replace")


def ended(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def run(name: str, request: Request) -> int:
    """Run a section in this process."""
    from importlib import import_module

    with Report(request, name).watched() as report:
        import_module(f"benchmarks.gpu_campaign.{name}").run(request, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
