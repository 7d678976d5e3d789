"""The reference is made of conf/: every key is in it, with its default and what it means."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from docs.site_parts import conf_pages, notebook_pages
from pancseg.config import conf_folder, register_resolvers

CONF = conf_folder()
ROW = re.compile(r"^\| `([^`]+)` \| (?:`([^`]*)`)? ?\| (.*) \|$", re.MULTILINE)
COMMANDS = [path.stem for path in sorted(CONF.glob("*.yaml"))]
CHOICES = sorted(CONF.glob("*/*.yaml"))


def leaves(node: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that holds a value, in dots."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in ("defaults", *GROUPS_THAT_ARE_NONE):
            yield f"{prefix}{key}", value


GROUPS_THAT_ARE_NONE = ("source", "experiment")


def rows() -> dict[str, list[tuple[str, str]]]:
    """Of each key of both pages the defaults and what it is."""
    found: dict[str, list[tuple[str, str]]] = {}
    for page in (conf_pages.commands_page(CONF), conf_pages.choices_page(CONF)):
        for key, default, meaning in ROW.findall(page):
            found.setdefault(key, []).append((default, meaning))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_key_of_a_command_stands_with_the_default_that_it_has(name: str) -> None:
    register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = OmegaConf.to_container(hydra.compose(name))
    assert isinstance(cfg, dict)
    known = rows()
    for key, value in leaves(cfg):
        assert key in known, f"{key} is not in the reference"
        if not (isinstance(value, list) and value and isinstance(value[0], dict)):
            shown = [yaml.safe_load(default.replace("\\|", "|")) for default, _ in known[key]]
            assert value in shown, f"{key} is {value}, the reference says {shown}"


def test_every_key_is_explained() -> None:
    assert [key for key, lines in rows().items() if not all(said for _, said in lines)] == []


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_key_of_a_choice_is_read(path: Any) -> None:
    written = yaml.safe_load(path.read_text()) or {}
    read = {key.name for key in conf_pages.read_choice(path).keys}
    own = {key for key, _ in leaves(written) if not key.startswith("hydra.")}
    assert own <= read


def test_a_comment_goes_on_below_and_belongs_to_its_key_alone() -> None:
    lines = [
        "a: 1      # one",
        "          # and more",
        "b: {c: 2}  # of c",
        "d: 3",
        "# of e",
        "e: 4",
    ]
    root = yaml.compose("\n".join(lines))
    found = {key.name: (key.value, key.remark) for key in conf_pages.keys_of(root, lines, "")}
    assert found == {
        "a": ("1", "one and more"),
        "b.c": ("2", "of c"),
        "d": ("3", ""),
        "e": ("4", ""),
    }


def test_a_notebook_becomes_a_page_with_what_it_printed_and_drew(tmp_path: Path) -> None:
    drawn = {"data": {"image/png": "QUJD\n", "text/plain": "<Figure>"}}
    cells = [
        {"cell_type": "markdown", "source": ["# First\n", "Words."]},
        {"cell_type": "code", "source": "print(1)", "outputs": [{"text": ["1\n"]}, drawn]},
        {"cell_type": "code", "source": "2", "outputs": [{"data": {"text/plain": "2"}}]},
    ]
    path = tmp_path / "seen.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    assert " ".join(notebook_pages.notebook_page(path).split()) == (
        "# First Words. [The notebook itself](seen.ipynb) ```python print(1) ``` ```text 1 ``` "
        "![what was drawn](data:image/png;base64,QUJD) ```python 2 ``` ```text 2 ```"
    )
