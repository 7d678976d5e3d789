"""``python -m tests.notebook`` runs ``docs/first_model.ipynb`` and stores it with its outputs."""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "first_model.ipynb"


def executed(folder: Path, **environment: str) -> nbformat.NotebookNode:
    """The notebook, run anew in a folder."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=resources)
    client.record_timing = False
    client.execute(env={**os.environ, **environment})
    return notebook


def store(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Write the notebook without progress bars and the path of its folder."""
    for cell in notebook.cells:
        cell.metadata.clear()
        outputs: list[nbformat.NotebookNode] = []
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                continue
            if "text" in output:
                output.text = output.text.replace(f"{folder}/", "")
                if outputs and "text" in outputs[-1]:  # a bar stood between them
                    outputs[-1].text += output.text
                    continue
            outputs.append(output)
        if "outputs" in cell:
            cell.outputs = outputs
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        store(executed(Path(name).resolve()), Path(name).resolve())
