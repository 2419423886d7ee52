# SPDX-License-Identifier: Apache-2.0
"""Notebooks run from their first cell to their last."""

import pathlib

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_as_a_reader_runs_it(path, monkeypatch):
    monkeypatch.setenv("SEQJAX_NOTEBOOK", "smoke")
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


def test_there_are_notebooks_and_they_are_small():
    assert "mission" in [path.stem for path in NOTEBOOKS]
    for path in NOTEBOOKS:
        assert path.stat().st_size < 500_000
