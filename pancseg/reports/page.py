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
    None: (
        "NOT KNOWN WHETHER HELD OUT",
        "Nothing here shows whether these patients were used in the training.",
    ),
}
PHANTOMS = ("PHANTOMS", "These are synthetic scans. Figures say nothing about patients.")


def write_page(path: Path, template: str, title: str, **content: Any) -> Path:
    """Fill in a template and write the page atomically.

    Args:
        path: HTML file.
        template: File of ``page_parts``.
        title: Of the page.
        **content: Variables of the template, with ``banners``.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PARTS), undefined=jinja2.StrictUndefined, autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"value": format_value, "svg": Markup}
    css, js = (Markup((PARTS / f"page.{kind}").read_text("utf-8")) for kind in ("css", "js"))
    content |= {"version": __version__, "date": datetime.date.today().isoformat()}
    page = environment.get_template(template).render(title=title, css=css, js=js, **content)
    write_text(path, page)
    return path


def banners_of(phantoms: bool, held_out: bool | None) -> list[tuple[str, str]]:
    """Titles and sentences of warnings in large letters."""
    return [PHANTOMS] * phantoms + ([] if held_out else [BANNERS[held_out]])
