"""Imports: no cycles, one direction."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "pancseg"
COMMANDS = ["prepare", "train", "evaluate", "predict", "report", "export", "phantom", "doctor"]
MAY_IMPORT = {  # of the subpackages; base files are free to all
    "dicom": {"dicom"}, "data": {"data", "models"}, "models": {"models"},
    "intake": {"intake", "dicom", "data"},
}  # fmt: skip


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pancseg"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in FILES else str(node.module) for name in names)


def test_there_is_no_import_cycle_and_a_subpackage_imports_only_those_below_it():
    graph = {name: set(imports_of(path)) - {name} for name, path in FILES.items()}
    TopologicalSorter(graph).prepare()
    subpackages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | set(COMMANDS)
    for name, imported in graph.items():
        package = name.split(".")[1] if "." in name else ""
        above = subpackages - MAY_IMPORT.get(package, subpackages)
        assert not above & {other.split(".")[1] for other in imported if "." in other}, name
