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
    (tree / "tests").mkdir()
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
    ("version", "damage", "reason"),
    [
        ("1.0", None, "not a semantic version"),
        (pancseg.__version__, None, "does not come after"),
        ("9.0.0", "changed", "uncommitted"),
        ("9.0.0", "tagged", "tag v9.0.0 exists"),
        ("9.0.0", "no entry", "no entry under Unreleased"),
    ],
)
def test_a_release_is_refused_with_the_reason_and_changes_nothing(
    tree: Path, version: str, damage: str | None, reason: str
) -> None:
    if damage == "changed":
        (tree / "README.md").write_text("other")
    elif damage == "tagged":
        git(tree, "tag", "v9.0.0")
    elif damage == "no entry":
        (tree / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 0.0.1\n\n- x\n")
        commit(tree)
    code, output = release(tree, version)
    assert (code, reason in output) == (1, True), output
    assert f'"{pancseg.__version__}"' in (tree / "pancseg" / "__init__.py").read_text()
    assert not (tree / "dist").exists()


@pytest.mark.slow
def test_a_release_has_its_version_in_wheel_sdist_and_changelog(tree: Path) -> None:
    code, output = release(tree, "9.0.0")
    assert code == 0, output
    assert "git tag v9.0.0" in output
    changelog = (tree / "CHANGELOG.md").read_text()
    assert changelog.index("## Unreleased") < changelog.index("## 9.0.0 (")
    assert changelog.index("## 9.0.0 (") < changelog.index("- something")
    with zipfile.ZipFile(tree / "dist" / "pancseg-9.0.0-py3-none-any.whl") as wheel:
        assert b'__version__ = "9.0.0"' in wheel.read("pancseg/__init__.py")
    assert (tree / "dist" / "pancseg-9.0.0.tar.gz").is_file()
