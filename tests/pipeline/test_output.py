"""Test the output of commands: to an ASCII terminal, to a closed pipe, and to a full device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher import PROJECT
from tests.runs import make_run

COMMANDS = {
    "pipeline.status": [],
    "pipeline.compare": ["--group", "g"],
    "pipeline.logs": ["a"],
    "pipeline.cancel": ["a"],
    "pipeline.launch": ["dry_run=true", "name=new"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a root with four runs, of which one has a damaged result."""
    root = tmp_path_factory.mktemp("output") / "o"
    for name in "abcd":
        run = make_run(root, name, seed=ord(name), metrics={"prep/quarantined": 0})
    (run / "train" / "result.json").write_text("null")
    return root


def call(module, root, encoding="utf-8", reader=True):
    words = [sys.executable, "-m", module, *COMMANDS[module]]
    words += [f"root={root}"] if module == "pipeline.launch" else ["--root", str(root)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "200"}
    begun = subprocess.Popen(
        words, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if not reader:
        begun.stdout.close()  # before the command prints, as `| true` does
        begun.stdout = None
    output, wrong = begun.communicate(timeout=120)
    return begun.returncode, output or b"", wrong


@pytest.mark.parametrize(
    ("module", "encoding"),
    [*((module, "ascii") for module in COMMANDS), ("pipeline.status", "latin-1")],
)
def test_characters_a_terminal_lacks_are_replaced(module, encoding, root):
    code, output, wrong = call(module, root, encoding)
    assert (code, wrong) == (0, b""), wrong.decode()
    assert output.decode(encoding)


@pytest.mark.parametrize("module", COMMANDS)
def test_a_closed_pipe_is_no_error(module, root):
    code, _, wrong = call(module, root, reader=False)
    assert (code, wrong) == (0, b""), wrong.decode()


@pytest.mark.parametrize("module", COMMANDS)
def test_a_full_standard_output_is_reported_in_one_line(module, root):
    words = [sys.executable, "-m", module, *COMMANDS[module]]
    words += [f"root={root}"] if module == "pipeline.launch" else ["--root", str(root)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            words, cwd=PROJECT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.stderr.splitlines()[-1].startswith("error: standard output: No space left"), done
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr
    assert done.returncode == 2


SOME = """
import sys
from slurm import output
output.make_safe(); output.make_safe()
for line in range(3000):
    print(line, "→ \\udcff ü")
print("finished", file=sys.stderr)
"""


@pytest.mark.parametrize("flags", [[], ["-u"]])
def test_a_program_continues_after_its_pipe_was_closed(flags):
    begun = subprocess.Popen(
        [sys.executable, *flags, "-c", SOME], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert begun.stdout.readline() == b"0 -> \\udcff \\xfc\n"
    begun.stdout.close()
    begun.stdout = None
    assert begun.communicate(timeout=60)[1] == b"finished\n"
    assert begun.returncode == 0


def test_a_command_with_closed_standard_output_works():
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {sys.executable} -c 'from slurm import output; output.make_safe(); print(1)' >&-"],
        cwd=PROJECT, capture_output=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_following_a_log_ends_with_its_reader(tmp_path):
    make_run(tmp_path / "o", "x", finished=("prep",))
    begun = subprocess.Popen(
        [sys.executable, "-m", "pipeline.logs", "x", "train", "-f", "--root", str(tmp_path / "o")],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert begun.stdout.read(2) == b"=="
    begun.stdout.close()
    begun.stdout = None
    assert begun.communicate(timeout=60)[1] == b""
    assert begun.returncode == 0


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["dry_run=true"]])
def test_a_locale_that_is_not_utf8_changes_nothing_that_is_read(words, tmp_path):
    odd = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.launch", *words, f"root={tmp_path}"],
        cwd=PROJECT, env=os.environ | odd, capture_output=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
