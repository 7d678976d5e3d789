"""Imports: no cycles, one direction."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

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


def test_there_is_no_import_cycle():
    graph = {name: set(imports_of(path)) - {name} for name, path in FILES.items()}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_subpackage_imports_only_those_below_it(package):
    above = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | set(COMMANDS)
    for path in (PACKAGE / package).rglob("*.py"):
        imported = {name.split(".")[1] for name in imports_of(path) if "." in name}
        assert imported & above <= MAY_IMPORT[package], path
