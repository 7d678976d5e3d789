"""Documentation: the notebook runs, and the tutorial does what it says."""

import os
import re
import shlex
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
REFUSED = {("prepare", "data=volume"), ("predict", "input=new/images")}  # some of the input


@pytest.mark.slow
def test_the_notebook_runs_from_phantoms_to_a_new_scan(tmp_path):
    quick = {"PANCSEG_NOTEBOOK_MINUTES": "0.1", "PANCSEG_NOTEBOOK_PATIENTS": "6"}
    notebook = nbformat.read(ROOT / "docs" / "first_model.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=resources)
    client.execute(env={**os.environ, **quick})
    assert (tmp_path / "first_model" / "run" / "report.html").is_file()
    assert len(list((tmp_path / "first_model" / "masks").glob("*_pancreas.dcm"))) == 1


def coarse(word):
    """Half the voxels along each axis, twice as long; a training that takes seconds."""
    key, _, value = word.partition("=")
    if key in ("shape", "spacing_mm"):
        numbers = [float(number) for number in value.strip("[]").split(",")]
        return f"{key}={[int(n) // 2 if key == 'shape' else 2 * n for n in numbers]}"
    return word.replace("trainer.max_time=00:00:05:00", "trainer.max_time=00:00:00:20")


def shape_of(line):
    """A printed line without what differs from run to run: numbers, names, units, flags."""
    line = re.sub(r"\[[a-z_ ]+\]$", "", line.strip()).replace(" missed ", " scored ")
    line = re.sub(r"\b(?=\w*\d)[0-9a-f]{12,}\b|\bp[0-9a-f]{10}\b", "#", line)
    line = re.sub(r"\d+(\.\d+)?( [kMG]B?\b)?", "#", line)
    return re.sub(r"\s+", " ", line).strip()


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(command, tmp_path):
    printed, shown, commands = set(), set(), set()
    for language, text in BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text()):
        if language == "python":
            exec(compile(text, "tutorial.py", "exec"), {})
        elif language == "text":
            shown |= {shape_of(line) for line in text.splitlines() if line[0] not in "┏┡└"}
        for line in text.replace("\\\n", " ").splitlines() if language == "bash" else []:
            match = re.match(r"python -m pancseg\.(\w+)(.*)", line)
            if not match or line.endswith("--help"):
                continue
            words = [coarse(word) for word in shlex.split(match[2], comments=True)]
            ended = command(match[1], *words)
            expected = int(any((match[1], word) in REFUSED for word in words))
            assert ended.code == expected, f"{line}\n{ended.err}"
            lines = (ended.out + ended.err).replace(f"{tmp_path}/", "").splitlines()
            printed |= set(map(shape_of, lines))
            commands.add(match[1])
    assert commands == {"phantom", "prepare", "train", "evaluate", "report", "predict"}
    assert shown - printed == set()
    for name in ("runs/first/report.html", "masks/predictions.csv", "data/prepared/privacy.key"):
        assert Path(name).is_file()
