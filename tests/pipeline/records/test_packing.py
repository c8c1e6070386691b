"""No file of ours is a pickle."""

import ast
import re

import pytest

from tests.launcher import PROJECT

pytestmark = pytest.mark.long

UNPICKLES = re.compile(
    r"pickle|_object(_list)?$|^shelve$|^marshal$|^dill$|^joblib$|^Manager$|^Listener$"
)


KNOWN = {
    "pipeline/data/sources/arrays.py": {"pickle"},  # what has its authors' checksum
    "pipeline/networks/weights.py": {"pickled", "_pickled"},  # by torch, tensors alone
    "slurm/sbatch.py": {"submitted_pickle"},  # in a directory that only we may write
}


def test_nothing_else_is_unpickled():
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
