"""What the documentation tells a reader to type."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
COMMAND = re.compile(r"python -m pancseg\.(\w+)(.*)")
INLINE = re.compile(r"`(python -m pancseg\.[^`]+)`")
ENDS = {"|", ">", "&", "&&", ";"}  # of what belongs to a command

Typed = tuple[str, tuple[str, ...]]


def commands_of(page: Path) -> list[Typed]:
    """Every command of a page, as its name and its words."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [*code_lines(text), *INLINE.findall(text)]
    found = [COMMAND.search(line) for line in lines]
    return [(one.group(1), words_of(one.group(2))) for one in found if one]


def code_lines(text: str) -> Iterator[str]:
    """Lines of fenced and of indented blocks; what a command printed is none."""
    fence = None
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fence = None if fence is not None else line.strip().removeprefix("```")
        elif (fence is not None and fence.split(" ")[0] != "text") or (
            fence is None and line.startswith("    ")
        ):
            yield line


def words_of(rest: str) -> tuple[str, ...]:
    """What a shell hands to the command; dots that stand for more are left out."""
    words: list[str] = []
    for word in shlex.split(rest, comments=True):
        if word in ENDS:
            break
        if word != "...":
            words.append(word)
    return tuple(words)


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Fenced blocks of a page in their order: language and text."""
    found = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in found]
