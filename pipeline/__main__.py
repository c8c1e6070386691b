"""Run the `dyrep` command: `dyrep launch`, `dyrep status`, … for `python -m pipeline.launch`, ….

A command is imported when it is called, so commands that only read files do not wait for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from pipeline.display.errors import BAD_INPUT, DONE, nearest
from pipeline.display.outside import say, visible
from pipeline.records.provenance import version
from slurm import output

COMMANDS = {
    "launch": ("pipeline.launch", "compose, plan and run the stages, here or on SLURM"),
    "status": ("pipeline.status", "show what each stage of a run is doing, and why it waits"),
    "logs": ("pipeline.logs", "print the log of a stage over all its attempts"),
    "cancel": ("pipeline.cancel", "stop runs and what depends on them"),
    "compare": ("pipeline.compare.__main__", "compare runs: which setting is better, at what cost"),
    "sync": ("pipeline.sync", "send runs to Weights & Biases"),
    "evaluate": ("pipeline.evaluate", "evaluate a file on prepared images"),
    "lr-finder": ("pipeline.lr_finder", "suggest a learning rate, from a short training"),
    "doctor": ("slurm.doctor", "check whether interrupted jobs come back on this cluster"),
    "dev-cluster": ("slurm.dev_cluster.__main__", "run a real SLURM on this machine, to try it"),
}
COMPLETION = "--completion"
HELP = f"""usage: dyrep COMMAND [ARGUMENT …]

{"".join(f"  {name:12}  {what}{chr(10)}" for name, (_, what) in COMMANDS.items())}
  dyrep COMMAND --help    every argument of a command
  dyrep --version         the version
  dyrep {COMPLETION}      a script that completes all this in bash: eval "$(dyrep {COMPLETION})"

Exit codes: 0 done, 1 a stage or job failed, 2 bad input, 130 interrupted."""


def main() -> int:
    """Run the command that the first argument names with the others; return its exit code."""
    output.make_safe()
    name, *rest = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        sys.argv[:] = [f"dyrep {name}", *rest]
        command: Callable[[], int] = import_module(COMMANDS[name][0]).main
        return command()
    answers: dict[str, Callable[[], str]] = {
        "--help": lambda: HELP,
        "-h": lambda: HELP,
        "--version": lambda: f"dyrep {version()}",
        COMPLETION: _completion,
    }
    if name not in answers:
        valid = nearest(name, [*COMMANDS, *answers])
        say(f"error: dyrep has no command '{name}'; {valid}", file=sys.stderr)
        return BAD_INPUT
    print(visible(answers[name]()))
    return DONE


def _completion() -> str:
    script = Path(__file__).with_name("completion.bash").read_text(encoding="utf-8")
    return script.replace("COMMANDS", " ".join(COMMANDS)).rstrip()


if __name__ == "__main__":
    sys.exit(main())
