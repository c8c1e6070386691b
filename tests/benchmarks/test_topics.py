"""Test that a benchmark runs without the name of its topic, and is in the table of its topic."""

import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

import benchmarks
from benchmarks import PROJECT, RESULTS, TOPICS

FOLDER = PROJECT / "benchmarks"
TABLES = (FOLDER / "README.md").read_text()


def scripts(topic):
    """Return the scripts of a topic, by the name that `python -m benchmarks.` takes."""
    for file in (FOLDER / topic).rglob("*.py"):
        if file.name == "__main__.py" or 'if __name__ == "__main__":' in file.read_text():
            parts = file.relative_to(FOLDER / topic).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__main__"), file


def rows(topic):
    section = next(text for text in TABLES.split("\n## ")[1:] if text.lower().startswith(topic))
    return re.findall(r"(?m)^\| `([\w.]+)` \|", section)


@pytest.mark.parametrize("topic", TOPICS)
def test_the_table_of_a_topic_names_its_scripts_and_no_others(topic):
    assert sorted(rows(topic)) == sorted(name for name, _ in scripts(topic))


@pytest.mark.parametrize("topic", TOPICS)
def test_each_script_is_found_without_its_topic(topic):
    for name, file in scripts(topic):
        package = find_spec(f"benchmarks.{name}")
        if package.submodule_search_locations:
            package = find_spec(f"benchmarks.{name}.__main__")
        assert Path(package.origin) == file, name


def test_the_table_links_every_file_of_results():
    linked = set(re.findall(r"\]\(results/([^)]+)\)", TABLES))
    files = {path.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("*.json*")}
    assert linked == files


def test_no_folder_is_missing_and_no_name_occurs_twice():
    folders = {path.name for path in FOLDER.iterdir() if any(path.glob("**/*.py"))}
    assert folders == set(TOPICS)
    names = Counter(
        path.stem
        for topic in TOPICS
        for path in (FOLDER / topic).iterdir()
        if path.suffix != ".pyc"
    )
    assert not [name for name, count in names.items() if count > 1 and name != "__pycache__"]
    assert not set(names) & set(TOPICS)


def test_no_module_is_imported_by_the_name_of_its_topic():
    named = re.compile(
        rf"benchmarks\.({'|'.join(TOPICS)})\b|from benchmarks import ({'|'.join(TOPICS)})\b"
    )
    for folder in ("benchmarks", "tests", "pipeline", "examples", "docs"):
        for file in (PROJECT / folder).rglob("*.[pm][yd]"):
            assert not named.search(file.read_text()), file
    assert benchmarks.__path__[0] == str(FOLDER)
