"""Run ``docs/first_model.ipynb`` and store it with its outputs, without progress bars and paths."""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "first_model.ipynb"


def main() -> None:
    """Run and store the notebook."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=resources)
        client.record_timing = False
        client.execute()
        for cell in notebook.cells:
            cell.metadata.clear()
            if "outputs" in cell:
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.get("outputs", []):
                if "text" in output:
                    output.text = output.text.replace(f"{Path(folder).resolve()}/", "")
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec}
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
