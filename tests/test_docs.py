"""Documentation: commands compose, the site builds offline, the reference holds each key."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from docs.site_parts import conf_pages
from pancseg.config import conf_folder
from tests import notebook
from tests.conftest import compose
from tests.documented import PAGES, ROOT, Typed, commands_of

TYPED = sorted({typed for page in PAGES for typed in commands_of(page)})
BUILD = """
import socket, sys
socket.socket.connect = socket.getaddrinfo = None
from mkdocs.__main__ import cli
cli(["build", "--strict", "--quiet", "--site-dir", sys.argv[1]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("typed", TYPED, ids=lambda typed: " ".join((typed[0], *typed[1])))
def test_a_command_of_the_documentation_composes(typed: Typed) -> None:
    name, words = typed
    if "--config-dir" in words:  # the reader's own
        words = tuple(word for word in words if not word.startswith("experiment="))
    words = tuple(w for w in words if not w.startswith("-") and ("=" in w or w[0] in "~+"))
    overrides = []
    for override in OverridesParser.create().parse_overrides(list(words)):
        if override.is_discrete_sweep():  # its first job
            value = next(iter(override.sweep_string_iterator()))
            overrides.append(f"{override.get_key_element()}={value}")
        elif not override.is_sweep_override():
            overrides.append(str(override.input_line))
    compose(name, *overrides)


@pytest.mark.slow
def test_the_site_builds_strictly_without_a_network_and_loads_nothing_from_outside(
    tmp_path: Path,
) -> None:
    words = [sys.executable, "-c", BUILD, str(tmp_path)]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    loaded = re.compile(r'<(?:link|script|img)[^>]*(?:href|src)="(?:https?:)?//|@import|url\(http')
    pages = [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]
    assert len(pages) > 20
    assert [path for path in pages if loaded.search(path.read_text())] == []


def test_the_reference_explains_every_key_of_the_configuration() -> None:
    pages = conf_pages.commands_page(conf_folder()) + conf_pages.choices_page(conf_folder())
    rows = re.findall(r"^\| `([^`]+)` \| (?:`[^`]*`)? ?\| (.*) \|$", pages, re.MULTILINE)
    assert len(rows) > 200
    assert [key for key, meaning in rows if not meaning] == []


def pictures(cells: list[nbformat.NotebookNode]) -> int:
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return sum(kind.startswith("image/") for o in outputs for kind in o.get("data", {}))


def test_the_notebook_is_stored_with_its_pictures_and_without_paths_or_errors() -> None:
    stored = nbformat.read(notebook.NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    assert pictures(stored.cells) == 6 and notebook.NOTEBOOK.stat().st_size < 1_500_000
    outputs = [output for cell in stored.cells for output in cell.get("outputs", [])]
    assert not any(output.output_type == "error" for output in outputs)
    text = "".join(output.get("text", "") for output in outputs)
    assert not re.search(r"(?<![\w.])/\w+/", text)


@pytest.mark.slow
def test_the_notebook_runs_from_phantoms_to_a_new_scan(tmp_path: Path) -> None:
    quick = {"PANCSEG_NOTEBOOK_MINUTES": "0.1", "PANCSEG_NOTEBOOK_PATIENTS": "6"}
    assert pictures(notebook.executed(tmp_path, **quick).cells) == 6
    assert (tmp_path / "first_model" / "run" / "report.html").is_file()
    assert len(list((tmp_path / "first_model" / "masks").glob("*_pancreas.dcm"))) == 1
