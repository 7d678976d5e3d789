"""Imports: no cycles, one direction, and commands that answer ``--help`` quickly."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pancseg"
FILES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = ["prepare", "train", "evaluate", "predict", "report", "export", "phantom", "doctor"]
MAY_IMPORT = {
    "dicom": {"dicom"},
    "data": {"data", "models"},
    "models": {"models"},
    "intake": {"intake", "dicom", "data"},
}
"""Subpackages that a subpackage may import; base files are free to all."""


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Modules of this package that a file imports anywhere in it."""
    known = {name_of(file) for file in FILES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pancseg"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("pancseg")}
    return found


def test_there_is_no_import_cycle() -> None:
    graph = {name_of(path): imports_of(path) - {name_of(path)} for path in FILES}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_subpackage_imports_only_those_below_it(package: str) -> None:
    subpackages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | set(COMMANDS)
    for path in (PACKAGE / package).rglob("*.py"):
        imported = {module.split(".")[1] for module in imports_of(path) if "." in module}
        assert imported & subpackages <= MAY_IMPORT[package], name_of(path)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_nothing_heavy_before_the_configuration_is_composed(
    command: str,
) -> None:
    tree = ast.parse((PACKAGE / f"{command}.py").read_text())
    light = {"omegaconf", "pancseg", *sys.stdlib_module_names}
    for node in tree.body:
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert {str(name).split(".")[0] for name in names} <= light
