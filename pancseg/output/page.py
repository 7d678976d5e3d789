"""Pages of one file: no address is asked for anything, whatever they show lies in them."""

import datetime
import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pancseg import __version__
from pancseg.files import write_text

PARTS = Path(__file__).with_name("page_parts")
PHANTOMS = ("PHANTOMS", "These are synthetic scans. Figures say nothing about patients.")
NOT_HELD_OUT = (
    "NOT HELD OUT",
    "These patients were trained on, or used to choose the checkpoint. Figures say nothing about "
    "scans that the network has not seen.",
)


@cache
def environment() -> jinja2.Environment:
    """Templates; everything that is filled in is escaped, a name that is missing is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(PARTS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: Path, template: str, title: str, **content: Any) -> None:
    """Fill in a template and write the page, whole or not at all.

    Args:
        path: HTML file.
        template: Name of a file in ``page_parts``.
        title: Of the page.
        **content: What the template asks for; ``banners`` among it.
    """
    frame = {
        "title": title,
        "version": __version__,
        "date": datetime.date.today().isoformat(),
        "css": Markup((PARTS / "page.css").read_text(encoding="utf-8")),
        "js": Markup((PARTS / "page.js").read_text(encoding="utf-8")),
    }
    page = environment().get_template(template)
    write_text(path, page.render(**frame, **content))


def banners_of(phantoms: bool, held_out: bool) -> list[tuple[str, str]]:
    """What has to be said in large letters."""
    return [PHANTOMS] * phantoms + [NOT_HELD_OUT] * (not held_out)


def as_data(value: Any) -> Markup:
    r"""Plain values as JSON for a script element, which they can neither end nor comment out.

    >>> str(as_data({"a": "</script><!--"}))
    '{"a": "\\u003c/script>\\u003c!--"}'
    """
    return Markup(json.dumps(value).replace("<", r"\u003c"))
