"""The exercises of the documentation, carried out in a copy of the tree."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
PAGE = (PROJECT / "docs" / "exercises.md").read_text()

EXERCISES = dict(re.findall(r"^## (.+?)$(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))


def diff_of(exercise: str) -> str:
    return re.findall(r"^```diff\n(.*?)^```$", EXERCISES[exercise], re.MULTILINE | re.DOTALL)[0]


def test_the_page_has_the_three_exercises() -> None:
    assert list(EXERCISES) == ["Add a dataset layout", "Add a loss", "Add a measure"]


@pytest.mark.parametrize("exercise", EXERCISES)
def test_an_exercise_touches_at_most_three_files(exercise: str) -> None:
    assert 2 <= len(re.findall(r"^diff --git ", diff_of(exercise), flags=re.MULTILINE)) <= 3


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the checkout, without what is not committed to it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a checkout of git, which alone knows the files of the tree")
    for name in filter(None, listed.stdout.decode().split("\0")):
        target = tmp_path / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (PROJECT / name).is_file():
            target.write_bytes((PROJECT / name).read_bytes())
    return tmp_path / "tree"


@pytest.mark.slow
@pytest.mark.parametrize("exercise", EXERCISES)
def test_an_exercise_can_be_carried_out_and_passes_its_tests(exercise: str, tree: Path) -> None:
    (tree / "exercise.diff").write_text(diff_of(exercise))
    subprocess.run(["git", "apply", "exercise.diff"], cwd=tree, check=True)
    words = shlex.split(re.findall(r"^Tests: `pytest (.+)`$", EXERCISES[exercise], re.MULTILINE)[0])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    for checked in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *checked, "."], cwd=tree, check=True)
