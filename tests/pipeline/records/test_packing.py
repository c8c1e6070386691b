"""Test that the packages unpickle nothing but the known files."""

import ast
import re

import pytest

from tests.launcher import PROJECT

pytestmark = pytest.mark.long

UNPICKLES = re.compile(
    r"pickle|_object(_list)?$|^shelve$|^marshal$|^dill$|^joblib$|^Manager$|^Listener$"
)


KNOWN = {
    "pipeline/data/sources/arrays.py": {"pickle"},  # CIFAR, whose checksum its authors published
    "pipeline/networks/weights.py": {"pickled", "_pickled"},  # torch loads tensors only
    "slurm/sbatch.py": {"submitted_pickle"},  # in a directory that no other user may write
}


def test_nothing_but_the_known_files_is_unpickled():
    found = {}
    for path in (
        p for package in ("dyrep", "pipeline", "slurm") for p in (PROJECT / package).rglob("*.py")
    ):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        names |= {node.id for node in nodes if isinstance(node, ast.Name)}
        names |= {
            alias.name
            for node in nodes
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        if bad := set(filter(UNPICKLES.search, names)):
            found[str(path.relative_to(PROJECT))] = bad
    assert found == KNOWN
