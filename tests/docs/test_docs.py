"""Test that readers can follow the documents: links have targets, commands are accepted."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.launcher import PROJECT

PAGES = sorted(
    page
    for page in PROJECT.rglob("*.md")
    if not any(part.startswith(".") for part in page.relative_to(PROJECT).parts)
)
COMMAND = re.compile(r"(?m)^\s*(?:#\s*Command:\s*)?python -m pipeline\.launch(.*)$")
ABSENT = r"FOLDER|teacher|=grown|~/"  # in commands that need images or runs which no test has


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_has_a_target(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_architecture_page_names_every_package_and_only_files_that_exist():
    text = (PROJECT / "docs" / "architecture.md").read_text()
    roots = [PROJECT, *(PROJECT / name for name in ("pipeline", "slurm", "dyrep"))]
    named = set(re.findall(r"`((?:\w+/)*\w+\.py|(?:\w+/)+)`", text))
    assert len(named) > 60
    for name in named:
        assert any((root / name).exists() for root in roots), name
    rooms = {path.parent.name for path in (PROJECT / "pipeline").glob("*/__init__.py")}
    flat = {
        path.name for package in ("dyrep", "slurm") for path in (PROJECT / package).glob("*.py")
    }
    assert rooms | flat - {"__init__.py"} <= {name.strip("/") for name in named}
    rows = text.partition("## Words")[2].partition("##")[0].splitlines()
    assert len([row for row in rows if row.startswith("| ")]) - 1 <= 15  # without the table's head


def test_files_and_functions_named_in_contributing_exist():
    text = (PROJECT / "CONTRIBUTING.md").read_text()
    files = set(
        re.findall(r"`((?:dyrep|pipeline|slurm|tests)/[\w/]+\.py)`(?:, `(\w+)(?:\(\))?`)?", text)
    )
    assert len(files) > 8
    for name, what in files:
        if "flowers" in name:  # the file that the reader is told to write
            continue
        assert (PROJECT / name).exists(), name
        assert what in (PROJECT / name).read_text(), (name, what)


def commands():
    files = [*PAGES, *(PROJECT / "conf" / "experiment").glob("*.yaml")]
    found = {
        line.split("   #")[0].strip()
        for file in files
        for line in COMMAND.findall(file.read_text())
        if not re.search(ABSENT, line)
    }
    return sorted(found)


@pytest.mark.parametrize("arguments", commands())
def test_commands_in_the_documents_are_accepted(launch, arguments, tmp_path):
    words = shlex.split(arguments.replace("/data/flowers", str(tmp_path / "flowers")))
    for split in ("train", "val"):  # only prep reads the images
        for number in range(300):
            path = tmp_path / "flowers" / split / "ab"[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    if {"--help", "--models"} & set(words):
        pytest.skip("tests of the launch command cover it")
    if "cluster=slurm" in words:
        pytest.skip("needs a SLURM with a partition of that name; see tests/cluster")
    if "hydra/sweeper=search" in words:
        pytest.importorskip("optuna")
    if any(word.startswith(("stage=", "stage.run=")) for word in words):
        words.append("stage=all")  # alone, a stage needs the results of earlier stages
    done = launch(*words, "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert not launch.root.exists()


@pytest.mark.long
def test_the_example_of_a_plain_loop_runs():
    """The loop grows three times, and fusing changes none of its predictions."""
    done = subprocess.run(
        [sys.executable, "-m", "examples.plain_loop"],
        cwd=PROJECT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("grow ") == 3
    assert "28,970 parameters, agreement 100%" in done.stdout
