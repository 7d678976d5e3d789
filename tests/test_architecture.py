"""The house: imports run one way, rooms are small, doors have no logic of their own."""

import ast
import re
import runpy
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pancseg"
FILES = sorted(PACKAGE.rglob("*.py"))
BASE = [
    "__init__",
    "errors",
    "atomic",
    "affine",
    "bounding_box",
    "pieces",
    "progress",
    "stopping",
    "processes",
    "sharing",
    "nifti_file",
    "hardware",
    "limits",
    "configuration",
    "explanation",
    "failure",
    "requeue",
    "command",
    "hydra_names",
    "launching",
]
WINGS = [
    "intake",
    "dataset",
    "learning",
    "inference",
    "scoring",
    "output",
    "preparing",
    "judging",
    "applying",
    "exporting",
    "tracking",
    "training",
    "sweeping",
    "checkup",
]
DOORS = ["prepare", "train", "evaluate", "predict", "report", "export", "phantom", "doctor"]
FROM_PYTHON = "api"  # calls the front doors, as a user does


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


def wing_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_there_is_no_import_cycle() -> None:
    graph = {name_of(path): imports_of(path) - {name_of(path)} for path in FILES}
    TopologicalSorter(graph).prepare()


def test_every_room_belongs_to_a_known_wing() -> None:
    known = {*BASE, *WINGS, *DOORS, "simulation", FROM_PYTHON}
    assert {wing_of(name_of(path)) for path in FILES} <= known


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_one_way(path: Path) -> None:
    here = wing_of(name_of(path))
    if here == "__init__":
        return  # the package's face hands names on, and imports them only when asked
    for module in imports_of(path):
        there = wing_of(module)
        if here == there or here in (*DOORS, FROM_PYTHON):
            continue
        assert there not in (*DOORS, FROM_PYTHON), (
            f"{name_of(path)} imports the front door {module}"
        )
        if here == "simulation" or here in BASE:
            assert there in BASE, f"{name_of(path)} imports {module}"
        elif there not in BASE:
            assert WINGS.index(there) < WINGS.index(here), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("door", DOORS)
def test_a_front_door_imports_nothing_heavy_before_the_configuration_is_read(door: str) -> None:
    tree = ast.parse((PACKAGE / f"{door}.py").read_text())
    light = (
        "collections dataclasses functools logging omegaconf pancseg pathlib sys typing warnings"
    )
    for node in tree.body:
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert {str(name).split(".")[0] for name in names} <= set(light.split())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_rooms_and_functions_are_small(path: Path) -> None:
    text = path.read_text()
    assert path.stem not in ("utils", "helpers", "misc", "common")
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert not body or body[-1].end_lineno - body[0].lineno < 50, node.name  # type: ignore[operator]


def test_the_map_shows_the_imports_there_are() -> None:
    """``python docs/draw_map.py`` draws it anew."""
    docs = PACKAGE.parent / "docs"
    picture = (docs / "architecture.svg").read_text()
    drawing = runpy.run_path(str(docs / "draw_map.py"))
    shown = {tuple(edge.split()) for edge in re.findall(r'data-edge="([^"]+)"', picture)}
    assert shown == drawing["plain"](drawing["edges"]())
    for wing, purpose in drawing["wings"]().items():
        assert f">{wing}<" in picture
        assert purpose.split()[0] in picture
