"""``python -m tests.notebook`` runs ``docs/first_model.ipynb`` and stores it with its outputs."""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "first_model.ipynb"


def executed(folder: Path, **environment: str) -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=resources)
    client.record_timing = False
    client.execute(env={**os.environ, **environment})
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        ran = executed(Path(folder).resolve())
        for cell in ran.cells:
            cell.metadata.clear()
            if "outputs" in cell:  # without progress bars
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.get("outputs", []):
                if "text" in output:
                    output.text = output.text.replace(f"{Path(folder).resolve()}/", "")
        ran.metadata = {"kernelspec": ran.metadata.kernelspec}
        nbformat.write(ran, NOTEBOOK)
