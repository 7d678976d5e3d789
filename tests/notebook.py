"""``docs/first_model.ipynb``, run as a user runs it.

``python -m tests.notebook`` runs it whole and stores it with what it printed and drew.
"""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parent.parent / "docs" / "first_model.ipynb"


def executed(folder: Path, **settings: str) -> NotebookNode:
    """The notebook, run anew in a folder, with settings as environment variables."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=where)
    client.record_timing = False  # the file changes with what it says alone
    client.execute(env={**os.environ, **settings})
    return notebook


def cleaned(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """A notebook without progress bars, the place where it ran and the kernel that ran it."""
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type != "code":
            continue
        cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        joined: list[NotebookNode] = []
        for one in cell.outputs:
            if "text" in one:
                one.text = one.text.replace(f"{folder}/", "")
            if joined and "text" in one and "text" in joined[-1]:
                joined[-1].text += one.text  # what a progress bar stood between
            else:
                joined.append(one)
        cell.outputs = joined
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        nbformat.write(cleaned(executed(folder), folder), NOTEBOOK)
