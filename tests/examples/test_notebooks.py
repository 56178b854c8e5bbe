"""The notebooks run from the first cell to the last, at a small size; what they were saved with is of a whole run."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(file, 4)  # type: ignore[no-untyped-call]
    (first,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    first.source, changed = re.subn(r"(?<== )[\d_]+", "4" if "UPDATES" in first.source else "600", first.source)
    assert changed == 1
    for cell in notebook.cells:  # whether an agent learns takes longer than all the rest, and has tests of its own
        if "source" in cell:
            cell.source = re.sub(r"(?m)^check_agent\(.*$", "pass", cell.source)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_was_saved_with_what_it_shows(file: Path) -> None:
    cells = [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]  # type: ignore[no-untyped-call]
    assert any(cell.outputs for cell in cells)
    errors = [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert not errors and [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) == 3
