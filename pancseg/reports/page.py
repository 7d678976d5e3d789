"""HTML pages in one file, which request nothing."""

import datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pancseg import __version__
from pancseg.files import write_text
from pancseg.reports.tables import format_value

PARTS = Path(__file__).with_name("page_parts")
BANNERS = {  # by held_out
    False: (
        "NOT HELD OUT",
        "These patients were trained on, or used to choose the checkpoint. Figures say nothing "
        "about scans that the network has not seen.",
    ),
    None: ("NOT KNOWN WHETHER HELD OUT", "These patients may have been used in the training."),
}
PHANTOMS = ("PHANTOMS", "These are synthetic scans. Figures say nothing about patients.")


def write_page(path: Path, template: str, title: str, **content: Any) -> Path:
    """Fill in a template of ``page_parts`` with ``banners`` and other variables; write the page."""
    css, js = (Markup((PARTS / f"page.{suffix}").read_text("utf-8")) for suffix in ("css", "js"))
    content |= {"version": __version__, "date": datetime.date.today().isoformat()}
    write_text(path, render(PARTS / template, title=title, css=css, js=js, **content))
    return path


def render(template: Path, **content: Any) -> str:
    """Fill in a template; values are escaped for HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent), undefined=jinja2.StrictUndefined,
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"value": format_value, "svg": Markup}
    return environment.get_template(template.name).render(content)


def banners_of(phantoms: bool, held_out: bool | None) -> list[tuple[str, str]]:
    """Titles and sentences of warnings in large letters."""
    return [PHANTOMS] * phantoms + ([] if held_out else [BANNERS[held_out]])
