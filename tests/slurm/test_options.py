"""Test that setup lines and options for sbatch and srun are checked before a job is submitted."""

import os

import pytest

from slurm import preflight
from slurm.scheduler import Refused


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["if true"], "unexpected end of file"),
        (["x=1", "fi"], r"line 2: syntax error near unexpected token `fi'"),
        (["cat <<EOF", "a"], "here-document at line 1"),
        (['echo "a'], "unexpected EOF while looking for matching"),
        (["f() {"], "unexpected end of file"),
    ],
)
def test_lines_that_bash_cannot_parse_are_refused(lines, message):
    with pytest.raises(Refused, match=message) as refused:
        preflight._check_setup(tuple(lines))
    assert str(refused.value).startswith("cluster.setup cannot be parsed (line ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "lines", [[], ["module load cuda", "export A=$(date)"], ["cat <<EOF", "a", "EOF"], ["x \\"]]
)
def test_lines_that_bash_can_parse_are_accepted(lines):
    preflight._check_setup(tuple(lines))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("chdir", "leave it out"),
        ("depend", "sbatch takes --depend for --dependency; write options in full"),
        ("part", "for --partition"),
        ("arr", "for --array"),
    ],
)
def test_an_option_that_the_launch_sets_is_refused_even_if_abbreviated(option, message):
    with pytest.raises(Refused, match=message):
        preflight._check_options({"nice", option})


def test_other_options_are_accepted():
    preflight._check_options({"nice", "ntasks", "wait-all-nodes", "mem-per-cpu", "time-min"})


@pytest.fixture
def srun(tmp_path, monkeypatch):
    """Put a stand-in for srun on the PATH, which stops at the first word that is not an option."""
    (tmp_path / "srun").write_text(
        "#!/bin/sh\nfor word; do case $word in\n"
        "--help) echo 'Usage: srun'; exit;; --test-only|--label) ;;\n"
        "-*) echo \"srun: unrecognized option '$word'\" >&2; exit 1;; *) exit;; esac; done\n"
    )
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_CONF", raising=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "--nope"], "cluster.srun=--label,--nope: unrecognized option '--nope'; corr"),
        (["--label", "hostname"], "words that are not options"),
    ],
)
def test_unknown_options_of_srun_and_other_words_are_refused(srun, options, message):
    with pytest.raises(Refused, match=message):
        preflight._check_srun(tuple(options))


def test_options_that_srun_knows_are_accepted(srun):
    preflight._check_srun(("--label",))
    preflight._check_srun(())
