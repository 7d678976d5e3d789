"""A notebook as a page, as it was last run: by hand, for converters bring a server along."""

import base64
import json
from pathlib import Path
from typing import Any


def notebook_page(path: Path) -> str:
    """Text, code and what the code printed or drew."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    first, *others = ["\n".join(parts_of(cell)) for cell in cells]
    return "\n\n".join([first, f"[The notebook itself]({path.name})", *others]) + "\n"


def parts_of(cell: dict[str, Any]) -> list[str]:
    """A cell as Markdown."""
    source = joined(cell["source"])
    if cell["cell_type"] != "code":
        return [source]
    return [fenced("python", source), *map(shown, cell.get("outputs", []))]


def shown(output: dict[str, Any]) -> str:
    """A picture where there is one, else text."""
    data = output.get("data", {})
    if "image/png" in data:
        return picture("png", joined(data["image/png"]).replace("\n", ""))
    if "image/svg+xml" in data:
        drawn = joined(data["image/svg+xml"]).encode()
        return picture("svg+xml", base64.b64encode(drawn).decode())
    return fenced("text", joined(output.get("text", data.get("text/plain", ""))))


def picture(kind: str, encoded: str) -> str:
    """A picture that the page holds itself."""
    return f"\n![what was drawn](data:image/{kind};base64,{encoded})\n"


def fenced(language: str, text: str) -> str:
    """A block of code."""
    return f"\n```{language}\n{text.rstrip()}\n```\n" if text.strip() else ""


def joined(text: str | list[str]) -> str:
    """Notebooks keep text in one piece or by lines."""
    return text if isinstance(text, str) else "".join(text)
