"""Documentation: commands compose, the site builds offline, notebook and tutorial run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from docs.site_parts import conf_pages
from pancseg.config import conf_folder
from tests import notebook
from tests.conftest import Command, compose

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"python -m pancseg\.(\w+)(.*)")
INLINE = re.compile(r"`(python -m pancseg\.[^`]+)`")
Typed = tuple[str, tuple[str, ...]]  # name and words of a command


def commands_of(page: Path) -> list[Typed]:
    """Commands in indented lines, fenced blocks and inline code; not those that were printed."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in BLOCK.sub("", text).splitlines() if line.startswith("    ")]
    for language, block in BLOCK.findall(text):
        lines += [] if language == "text" else block.splitlines()
    found = map(COMMAND.search, [*lines, *INLINE.findall(text)])
    return [(match[1], words_of(match[2])) for match in found if match]


def words_of(rest: str) -> tuple[str, ...]:
    """Arguments as a shell hands them on, without ``...``."""
    words = shlex.split(rest, comments=True)
    end = next((n for n, word in enumerate(words) if word in {"|", ">", "&", "&&", ";"}), None)
    return tuple(word for word in words[:end] if word != "...")


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
    words = tuple(word for word in words if "=" in word or word[0] in "~+")
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


MINUTES, SECONDS = "trainer.max_time=00:00:05:00", "trainer.max_time=00:00:00:20"
REFUSED = {("prepare", "data=volume"), ("predict", "input=new/images")}  # some of the input


def coarse(word: str) -> str:
    """Half the voxels along each axis, twice as long; a training that takes seconds."""
    key, _, value = word.partition("=")
    if key == "shape":
        return f"shape={[int(number) // 2 for number in value.strip('[]').split(',')]}"
    if key == "spacing_mm":
        return f"spacing_mm={[2 * float(number) for number in value.strip('[]').split(',')]}"
    return SECONDS if word == MINUTES else word


def shape_of(line: str) -> str:
    """A printed line without what differs from run to run: numbers, names, units, flags."""
    line = re.sub(r"\[[a-z_ ]+\]$", "", line.strip()).replace(" missed ", " scored ")
    line = re.sub(r"\b(?=\w*\d)[0-9a-f]{12,}\b|\bp[0-9a-f]{10}\b", "#", line)
    line = re.sub(r"\d+(\.\d+)?( [kMG]B?\b)?", "#", line)
    return re.sub(r"\s+", " ", line).strip()


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(command: Command, tmp_path: Path) -> None:
    printed, shown, commands = set(), set(), []
    for language, text in BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text()):
        if language == "python":
            exec(compile(text, "tutorial.py", "exec"), {})
        elif language == "text":
            shown |= {shape_of(line) for line in text.splitlines() if line[0] not in "┏┡└"}
        for line in text.splitlines() if language == "bash" else []:
            if not (match := COMMAND.match(line)) or line.endswith("--help"):
                continue
            words = [coarse(word) for word in words_of(match[2])]
            ended = command(match[1], *words)
            expected = int(any((match[1], word) in REFUSED for word in words))
            assert ended.code == expected, f"{line}\n{ended.err}"
            lines = (ended.out + ended.err).replace(f"{tmp_path}/", "").splitlines()
            printed |= set(map(shape_of, lines))
            commands.append(match[1])
    assert set(commands) == {"phantom", "prepare", "train", "evaluate", "report", "predict"}
    assert shown - printed == set()
    for name in ("runs/first/report.html", "masks/predictions.csv", "data/prepared/privacy.key"):
        assert Path(name).is_file()
