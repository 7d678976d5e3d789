"""The notebook runs, and is stored as it ran."""

import re
from pathlib import Path

import nbformat
import pytest

from tests.notebook import NOTEBOOK

PICTURES = 6  # contact sheet, samples, curves, outlines, chart, preview


def pictures(notebook: nbformat.NotebookNode) -> int:
    """Outputs that are pictures."""
    shown = [
        kind
        for cell in notebook.cells
        for one in cell.get("outputs", [])
        for kind in one.get("data", {})
    ]
    return sum(kind.startswith("image/") for kind in shown)


@pytest.mark.slow
def test_the_notebook_runs_from_phantoms_to_a_new_scan(tmp_path: Path) -> None:
    from tests.notebook import executed

    quick = {"PANCSEG_NOTEBOOK_MINUTES": "0.1", "PANCSEG_NOTEBOOK_PATIENTS": "6"}
    ran = executed(tmp_path, **quick)
    assert pictures(ran) == PICTURES
    said = "".join(one.get("text", "") for cell in ran.cells for one in cell.get("outputs", []))
    assert "copy " not in said  # what libraries say to themselves
    assert (tmp_path / "first_model" / "run" / "report.html").is_file()
    assert len(list((tmp_path / "first_model" / "masks").glob("*_pancreas.dcm"))) == 1


def test_the_notebook_is_stored_small_with_its_pictures_and_no_place() -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    assert pictures(stored) == PICTURES
    assert NOTEBOOK.stat().st_size < 1_500_000
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(one.output_type == "error" for cell in code for one in cell.outputs)
    text = "".join(one.get("text", "") for cell in code for one in cell.outputs)
    assert not re.search(r"(?<![\w.])/\w+/", text), "a path of the machine it ran on"
    assert stored.metadata.kernelspec.name == "python3"


def test_the_notebook_calls_the_package_and_repeats_none_of_it() -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    source = "\n".join(cell.source for cell in stored.cells if cell.cell_type == "code")
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, flags=re.MULTILINE))
    assert imported == {"os", "pathlib", "IPython", "pancseg"}
    assert not re.search(r"^\s*(def|class|for|while)\b", source, flags=re.MULTILINE)


def test_links_of_the_notebook_lead_somewhere() -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    for cell in stored.cells:
        for link in re.findall(r"\]\(([^)#:]+)\)", cell.source):
            assert (NOTEBOOK.parent / link).exists(), link
