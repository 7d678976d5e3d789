"""The tutorial, typed as it stands into an empty folder: on coarser phantoms and for less time."""

import re
from pathlib import Path

import pytest

from tests.conftest import Command
from tests.documented import BLOCK, COMMAND, ROOT, words_of

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
