"""``make release`` in a copy of the tree: what it refuses, and what it leaves."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pancseg

PROJECT = Path(__file__).parent.parent


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository of the package, its configuration and its changelog."""
    tree = tmp_path / "tree"
    for name in ("pancseg", "conf", ".ci"):
        left_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / name, tree / name, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt", "Makefile"):
        shutil.copy(PROJECT / name, tree)
    (tree / "tests" / "compat" / pancseg.__version__).mkdir(parents=True)
    (tree / "tests" / "compat" / pancseg.__version__ / "kept").write_text("")
    (tree / "tests" / "conftest.py").write_text("")
    (tree / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n- something\n")
    git(tree, "init", "-q")
    commit(tree)
    return tree


def git(tree: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *who, *words], cwd=tree, check=True, capture_output=True)


def commit(tree: Path) -> None:
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "x")


def release(tree: Path, version: str) -> tuple[int, str]:
    script = [sys.executable, str(tree / ".ci" / "release.py"), version]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("version", "damage", "says"),
    [
        ("1.0", None, "is no semantic version"),
        (pancseg.__version__, None, "does not come after"),
        ("9.0.0", "changed", "not committed"),
        ("9.0.0", "tagged", "the tag v9.0.0 is there"),
        ("9.0.0", "silent", "says nothing under Unreleased"),
        ("9.0.0", "uncompared", "nothing that"),
    ],
)
def test_what_cannot_be_released_is_told_and_nothing_changes(
    tree: Path, version: str, damage: str | None, says: str
) -> None:
    if damage == "changed":
        (tree / "README.md").write_text("other")
    elif damage == "tagged":
        git(tree, "tag", "v9.0.0")
    elif damage == "silent":
        (tree / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 0.0.1\n\n- x\n")
        commit(tree)
    elif damage == "uncompared":
        shutil.rmtree(tree / "tests" / "compat")
        commit(tree)
    code, told = release(tree, version)
    assert (code, says in told) == (1, True), told
    assert f'"{pancseg.__version__}"' in (tree / "pancseg" / "__init__.py").read_text()
    assert not (tree / "dist").exists()


@pytest.mark.slow
def test_a_release_has_its_version_in_wheel_sdist_and_changelog(tree: Path) -> None:
    code, told = release(tree, "9.0.0")
    assert code == 0, told
    assert "git tag v9.0.0" in told
    changelog = (tree / "CHANGELOG.md").read_text()
    assert changelog.index("## Unreleased") < changelog.index("## 9.0.0 (")
    assert changelog.index("## 9.0.0 (") < changelog.index("- something")
    with zipfile.ZipFile(tree / "dist" / "pancseg-9.0.0-py3-none-any.whl") as wheel:
        assert b'__version__ = "9.0.0"' in wheel.read("pancseg/__init__.py")
    assert (tree / "dist" / "pancseg-9.0.0.tar.gz").is_file()
