"""Test that pyproject.toml, requirements.lock, pixi.toml and Makefile describe one environment."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.launcher import PROJECT


def toml(name):
    return tomllib.loads((PROJECT / name).read_text())


@pytest.fixture(scope="module")
def wanted():
    """Return every requirement of the project, with those of its extras, by name."""
    project = toml("pyproject.toml")["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for extra in extras.values() for text in extra)]
    requirements = [Requirement(text) for text in texts]
    return {canonicalize_name(r.name): r for r in requirements}


@pytest.fixture(scope="module")
def locked():
    """Return the entries of the lock by name; an entry is one line with its hashes."""
    text = (PROJECT / "requirements.lock").read_text().replace("\\\n", " ")
    entries = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(re.match(r"[\w.-]+", e)[0]): e for e in entries}


def test_the_lock_holds_every_requirement_in_its_range(wanted, locked):
    for name, requirement in wanted.items():
        assert name in locked, f"{name} is not locked; run: make lock"
        version = re.search(r"==([\w.]+)", locked[name])[1]
        assert requirement.specifier.contains(version), (name, version)


def test_every_entry_of_the_lock_is_pinned_and_hashed(locked):
    for name, entry in locked.items():
        assert "==" in entry, name
        assert "--hash=sha256:" in entry, name


def test_the_lock_names_no_address():
    text = (PROJECT / "requirements.lock").read_text()
    assert "://" not in text
    assert "index" not in re.sub(r"(?m)^[\w.-]+==.*$", "", text)


def test_pixi_installs_the_extras_of_pyproject():
    pixi, project = toml("pixi.toml"), toml("pyproject.toml")["project"]
    tables = [pixi["pypi-dependencies"]]
    tables += [f["pypi-dependencies"] for f in pixi["feature"].values() if "pypi-dependencies" in f]
    used = set()
    for table in tables:
        assert set(table) == {project["name"]}, (
            "pixi.toml may name this project only; versions belong in pyproject.toml"
        )
        used |= set(table["dyrep"]["extras"])
    assert used == set(project["optional-dependencies"])
    assert set(pixi["dependencies"]) == {"python"}
    assert set(pixi["dependencies"]["python"].split(",")) == set(
        project["requires-python"].split(",")
    )


def test_pixi_has_an_environment_for_cuda_and_one_without():
    environments = toml("pixi.toml")["environments"]
    assert "cuda" in environments["default"]["features"]
    assert "cuda" not in environments["cpu"]["features"]


@pytest.mark.parametrize("task", ["demo", "test", "check", "lint", "format", "docs", "launch"])
def test_pixi_and_make_run_the_same_commands(task):
    pixi = toml("pixi.toml")
    tasks = pixi["tasks"] | pixi["feature"]["dev"]["tasks"]
    makefile = (PROJECT / "Makefile").read_text()
    recipe = re.search(rf"(?m)^{task}:.*\n\t@(.*)$", makefile)[1]
    recipe = recipe.replace("$(BIN)/", "").removesuffix(" $(ARGS)")
    assert recipe == tasks[task]["cmd"]


def test_ci_calls_the_test_command_of_the_readme():
    assert '\nmake "${@:-test}"' in (PROJECT / ".ci" / "run").read_text()
    assert "make test" in (PROJECT / "README.md").read_text()


def test_the_workflow_calls_tasks_of_the_makefile():
    workflow = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    called = " ".join(step.get("run", "") for step in steps)
    tasks = re.findall(r"make (\w+)", called)
    assert {"check", "docs"} <= set(tasks) and ".ci/run" in called
    makefile = (PROJECT / "Makefile").read_text()
    assert all(re.search(rf"(?m)^{task}:", makefile) for task in tasks)


def test_a_citation_names_the_present_version():
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    version = (PROJECT / "dyrep" / "VERSION").read_text().strip()
    assert citation["version"] == version
    assert f"dyrep-{version}-" in (PROJECT / "docs" / "install.md").read_text()


def test_pre_commit_runs_the_locked_linters():
    """The hooks are local, so they run the linters of the environment and fetch none."""
    text = Path(PROJECT / ".pre-commit-config.yaml").read_text()
    assert "repo: local" in text
    assert "http" not in text
