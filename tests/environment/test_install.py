"""Test that a wheel holds all that the commands read, and that they run in any directory."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from pipeline.config.base import STAGE_NAMES
from tests.launcher import PROJECT, SMALL

pytestmark = pytest.mark.long

PACKAGES = ("dyrep", "pipeline", "slurm")
SOURCES = (*PACKAGES, "conf", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def quietly(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return a wheel, built without network from a copy, because a build leaves files behind."""
    copy, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (PROJECT / name).is_dir():
            shutil.copytree(
                PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(PROJECT / name, copy)
    quietly(
        sys.executable, "-m", "pip", "wheel", "--no-index", "--no-build-isolation", "--no-deps",
        "--wheel-dir", made, copy,
    )  # fmt: skip
    return next(made.iterdir())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return an environment with the wheel and its requirements, in another project's checkout."""
    there = tmp_path_factory.mktemp("their_project")
    quietly("git", "init", "--quiet", there)
    who = ("-c", "user.name=x", "-c", "user.email=x@y")
    quietly("git", "-C", there, *who, "commit", "--quiet", "--allow-empty", "--message=theirs")
    quietly(sys.executable, "-m", "venv", "--without-pip", there / "venv")
    (packages,) = (there / "venv").glob("lib/*/site-packages")
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib"))
    quietly(
        sys.executable, "-m", "pip", "--python", there / "venv" / "bin" / "python", "install",
        "--no-index", "--no-deps", wheel,
    )  # fmt: skip
    return there / "venv"


@pytest.fixture
def run(installed, tmp_path):
    """Return a function that runs an installed program among folders named like our packages."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def call(program, *arguments):
        return quietly(installed / "bin" / program, *arguments, cwd=tmp_path, env=kept)

    return call


def files(folder):
    paths = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    return {path for path in paths if "__pycache__" not in path.parts}


def test_a_wheel_holds_every_file_of_the_packages_and_the_configuration(installed):
    (packages,) = installed.glob("lib/*/site-packages")
    for name in PACKAGES:
        there = {path for path in files(packages / name) if path.parts[0] != "conf"}
        assert there == files(PROJECT / name) - {Path("README.md")}
    assert files(packages / "pipeline" / "conf") == files(PROJECT / "conf")


def test_an_installed_launch_prints_help_and_a_plan_and_finds_its_configuration(run, tmp_path):
    assert "cifar100" in run("dyrep", "launch", "--help")
    assert "dry run: nothing was touched" in run("dyrep", "launch", "name=x", "dry_run=true")
    assert "prep     run" in run("python", "-m", "pipeline.launch", "name=x", "dry_run=true")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PACKAGES)


def test_an_installed_launch_runs_a_demo_to_its_report(run, tmp_path):
    run("dyrep", "launch", "name=demo", "method=dyrep", *SMALL)
    done = tmp_path / "outputs" / "runs" / "demo"
    stages = [stage for stage in STAGE_NAMES if (done / stage / "result.json").exists()]
    assert stages == list(STAGE_NAMES)
    assert "</html>" in (done / "report.html").read_text()
    assert "demo" in run("dyrep", "status", "demo")


ASKED = """
import dyrep
from pathlib import Path
from pipeline.execution import code_snapshot
from pipeline.records.provenance import source_revision, version
revision = source_revision()
assert revision == {"version": dyrep.__version__, "revision": None, "dirty": False}, revision
print(code_snapshot.freeze(Path("outputs")))
"""


def test_an_installed_package_knows_its_version_and_jobs_run_a_copy_of_it(run, tmp_path):
    kept = run("python", "-c", ASKED).strip()
    where = "import pipeline.run, slurm.supervise; print(pipeline.__file__)"
    path = run("python", "-c", f"import os; os.chdir({kept!r}); {where}")
    assert path.strip() == f"{kept}/pipeline/__init__.py"


TYPED = """
COMP_LINE={line!r} COMP_POINT=${{#COMP_LINE}}
read -ra COMP_WORDS <<< "$COMP_LINE"; [[ $COMP_LINE == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
PATH={bin}:$PATH; eval "$(dyrep --completion)"; _dyrep; printf '%s|' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("dyrep stat", "status |"),
        ("dyrep launch data=cifar1", "cifar10 |cifar100 |"),
        ("dyrep launch method=plain train.epo", "train.epochs=|"),
        ("dyrep status ", "one |two |"),
        ("dyrep logs --root elsewhere th", "three |"),
    ],
)
def test_bash_completes(installed, tmp_path, line, completed):
    for name in ("outputs/runs/one", "outputs/runs/two", "elsewhere/runs/three"):
        (tmp_path / name).mkdir(parents=True)
    script = TYPED.format(line=line, bin=installed / "bin")
    assert quietly("bash", "-c", script, cwd=tmp_path) == completed
