"""What MkDocs asks of us while it builds: pages made of ``conf/``, and pages from outside docs/."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))  # MkDocs runs this file alone, in no package
import conf_pages
import notebook_pages

ROOT = Path(__file__).parents[2]
BROUGHT = {  # written beside the code they tell of; the site shows them, too
    "benchmarks.md": "benchmarks/RESULTS.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
MADE = {
    "reference/commands.md": conf_pages.commands_page,
    "reference/choices.md": conf_pages.choices_page,
}


def on_files(files: Files, config: Any) -> Files:
    """Add what is no file in docs/."""
    pages = {name: make(ROOT / "conf") for name, make in MADE.items()}
    for name, path in BROUGHT.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        pages[name] = re.sub(r"\]\((?:\.\./)?docs/", "](", text)
    for path in sorted((ROOT / "docs").glob("*.ipynb")):
        pages[f"{path.stem}.md"] = notebook_pages.notebook_page(path)
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links out of docs/ to the site's own copy."""
    up = "../" * page.file.src_uri.count("/")
    for name, path in BROUGHT.items():
        markdown = markdown.replace(f"]({up}../{path}", f"]({up}{name}")
    return markdown


def on_config(config: Any) -> Any:
    """Rebuild as the configuration is edited, under ``mkdocs serve``."""
    config.watch.append(str(ROOT / "conf"))
    return config
