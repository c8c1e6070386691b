"""Test that the notebook of examples/ runs on a finished run, cell by cell."""

import pytest

from pipeline.records import rundir
from tests.launcher import PROJECT

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

NOTEBOOK = PROJECT / "examples" / "look_inside.ipynb"


def test_the_notebook_is_kept_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells)


@pytest.mark.long
def test_the_notebook_runs(finished, monkeypatch):
    monkeypatch.setenv("RUN", str(rundir.run_dir(finished.root, "small")))
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    output = "".join(
        out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", [])
    )
    assert "images are right" in output and "the scores changed by" in output and " fused" in output
