"""Commands and code blocks of the documentation."""

import re
import shlex
from pathlib import Path

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
