"""The notebooks run from the first cell to the last, and hold no outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ["inference.ipynb", "training.ipynb"]


def test_every_notebook_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.ipynb")} == set(NAMES)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_runs_and_was_committed_without_outputs(name, monkeypatch):
    monkeypatch.chdir(EXAMPLES.parent)
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    NotebookClient(notebook, timeout=100, kernel_name="python3").execute()
    assert any("HAMLET" in cell.source and cell.outputs for cell in cells)
