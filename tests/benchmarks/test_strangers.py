"""Test the list of test files that `benchmarks.strangers` replays, and its counts."""

from benchmarks.strangers import KINDS, count
from tests.launcher import PROJECT

FILES = [file for files in KINDS.values() for file in files]


def test_each_kind_names_files_that_exist_and_that_no_other_kind_names():
    missing = [file for file in FILES if not (PROJECT / f"tests/pipeline/{file}.py").is_file()]
    assert not missing
    assert len(FILES) == len(set(FILES))


def test_tests_are_counted_in_nested_folders(tmp_path):
    (tmp_path / "junit.xml").write_text(
        '<testsuites><testsuite><testcase classname="tests.pipeline.test_a" name="x"/>'
        '<testcase classname="tests.pipeline.data.test_b" name="y"><failure/></testcase>'
        '<testcase classname="tests.pipeline.data.test_b" name="z"><skipped/></testcase>'
        "</testsuite></testsuites>"
    )
    found = count(tmp_path / "junit.xml", {"one": ["test_a"], "two": ["data/test_b"]})
    assert found["one"] == {"passed": 1, "failed": 0, "skipped": 0}
    assert found["two"] == {"passed": 0, "failed": 1, "skipped": 1}
