"""The tutorial, typed as it stands into an empty folder: on coarser phantoms and for less time."""

import re
from pathlib import Path

import pytest

from tests.conftest import Command
from tests.documented import COMMAND, ROOT, blocks_of, words_of

PAGE = ROOT / "docs" / "tutorial.md"
MINUTES, SECONDS = "trainer.max_time=00:00:05:00", "trainer.max_time=00:00:00:20"
CODES = {("prepare", "data=volume"): 1, ("predict", "input=new/images"): 1}  # some are refused
FRAMES = "┏┡└"  # of a table


def coarse(word: str) -> str:
    """Half the voxels along each axis, twice as long; a training that takes seconds."""
    key, _, value = word.partition("=")
    factor = {"shape": 0.5, "spacing_mm": 2.0}.get(key)
    if factor:
        numbers = [float(number) * factor for number in value.strip("[]").split(",")]
        shown = [f"{int(n) if key == 'shape' else n}" for n in numbers]
        return f"{key}=[{','.join(shown)}]"
    return SECONDS if word == MINUTES else word


def shape_of(line: str) -> str:
    """A printed line without what differs from run to run: numbers, names, units, flags."""
    line = re.sub(r"\[[a-z_ ]+\]$", "", line.strip())
    line = line.replace(" missed ", " scored ")  # what so short a training may come to
    line = re.sub(r"\b(?=\w*\d)[0-9a-f]{12,}\b|\bp[0-9a-f]{10}\b", "#", line)
    line = re.sub(r"\d+(\.\d+)?( [kMG]B?\b)?", "#", line)
    return re.sub(r"\s+", " ", line).strip()


def is_typed(line: str) -> bool:
    return COMMAND.match(line) is not None and not line.endswith("--help")


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(command: Command, tmp_path: Path) -> None:
    printed: set[str] = set()
    shown: set[str] = set()
    commands = []
    for language, text in blocks_of(PAGE):
        if language == "python":
            exec(compile(text, "spoil.py", "exec"), {})
        elif language == "text":
            shown |= {shape_of(line) for line in text.splitlines() if line[0] not in FRAMES}
        for line in filter(is_typed, text.splitlines() if language == "bash" else []):
            name, rest = COMMAND.match(line).groups()  # type: ignore[union-attr]
            words = [coarse(word) for word in words_of(rest)]
            ended = command(name, *words)
            expected = next((c for (n, w), c in CODES.items() if n == name and w in words), 0)
            assert ended.code == expected, f"{line}\n{ended.err}"
            said = (ended.out + ended.err).replace(f"{tmp_path}/", "")
            printed |= {shape_of(line) for line in said.splitlines()}
            commands.append(name)
    assert commands == [
        *["phantom"] * 4, *["prepare"] * 2, "train", *["evaluate"] * 2, "report", "predict"
    ]  # fmt: skip
    assert shown - printed == set()
    for picture in re.findall(r"\]\((pictures/[^)]+)\)", PAGE.read_text()):
        assert (ROOT / "docs" / picture).stat().st_size < 100_000
    for name in ("runs/first/report.html", "masks/predictions.csv", "data/prepared/privacy.key"):
        assert Path(name).is_file()
