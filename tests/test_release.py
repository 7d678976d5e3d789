"""``make release`` and ``make audit``: what they refuse, and what a release holds."""

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import pancseg

ROOT = Path(__file__).parent.parent
FILES = ["pyproject.toml", "README.md", "LICENSE", "constraints.txt", "Makefile"]
FOUND = "printf 'Name Version ID Fix Versions\\ntorch 1.0 PYSEC-1 2.0'; exit 1"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository of the package, its configuration and its changelog."""
    tree, ignore = tmp_path / "tree", shutil.ignore_patterns("__pycache__")
    for name in ("pancseg", "conf", ".ci"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    (tree / "tests").mkdir()
    (tree / "tests" / "conftest.py").touch()
    (tree / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n- something\n")
    git(tree, "init", "-q")
    git(tree, "add", "-A")
    git(tree, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "x")
    return tree


def git(tree: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=tree, check=True, capture_output=True)


def release(tree: Path, version: str) -> tuple[int, str]:
    words = [sys.executable, str(tree / ".ci" / "release.py"), version]
    ended = subprocess.run(words, capture_output=True, text=True)
    return ended.returncode, ended.stdout + ended.stderr


def test_an_impossible_release_is_refused_and_changes_nothing(tree: Path) -> None:
    version = pancseg.__version__
    git(tree, "tag", "v9.0.0")
    refused = {"1.0": "semantic version", version: "come after", "9.0.0": "v9.0.0 exists"}
    for new, reason in refused.items():
        assert release(tree, new)[0] == 1 and reason in release(tree, new)[1]
    (tree / "README.md").write_text("other")
    assert "uncommitted changes" in release(tree, "9.0.1")[1]
    assert f'"{version}"' in (tree / "pancseg" / "__init__.py").read_text()
    assert not (tree / "dist").exists()


@pytest.mark.slow
def test_a_release_has_its_version_in_wheel_sdist_and_changelog(tree: Path) -> None:
    code, printed = release(tree, "9.0.0")
    assert code == 0, printed
    changelog = (tree / "CHANGELOG.md").read_text()
    order = [changelog.index(text) for text in ("## Unreleased", "## 9.0.0 (", "- something")]
    assert order == sorted(order)
    with zipfile.ZipFile(tree / "dist" / "pancseg-9.0.0-py3-none-any.whl") as wheel:
        assert b'__version__ = "9.0.0"' in wheel.read("pancseg/__init__.py")
    assert (tree / "dist" / "pancseg-9.0.0.tar.gz").is_file()


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_trains_scores_and_exports(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(tmp_path / "venv", with_pip=True)
    (tmp_path / "away").mkdir()

    def run(*words: str) -> str:
        python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        options = {"cwd": tmp_path / "away", "stdout": subprocess.PIPE, "text": True}
        return subprocess.run([str(python), "-m", *words], check=True, **options).stdout

    pip = ["pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    run(*pip, "torch==2.13.0")
    run(*pip, str(next(tmp_path.glob("*.whl"))))
    assert "group64" in run("pancseg.train", "--help")
    run("pancseg.phantom", "out=d", "patients=3", "shape=[48,48,40]", "spacing_mm=[8,8,8]")
    shallow = ["data.depth=32", "data.tail=shift", "data.root=r", "privacy=none"]
    run("pancseg.prepare", "source.images=d/images", "source.labels=d/labels", *shallow)
    patches = ["sampling=patches", "sampling.steps_per_epoch=2", "data.spacing_mm=[8,8,8]"]
    run("pancseg.train", "experiment=smoke", *shallow, *patches, "hydra.run.dir=run")
    assert "held out" in run("pancseg.evaluate", "checkpoint=run/checkpoints/best.ckpt")
    assert (tmp_path / "away" / "run" / "report.html").is_file()
    run("pancseg.export", "checkpoint=run/checkpoints/best.ckpt", "output=bundle")
    assert (tmp_path / "away" / "bundle" / "configs" / "inference.json").is_file()


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
@pytest.mark.parametrize(
    ("script", "code", "text"),
    [("echo No known", 0, "No known"), (FOUND, 2, "PYSEC-1"), ("exit 1", 2, "NOT AUDITED")],
)
def test_an_audit_that_could_look_up_nothing_says_so(
    script: str, code: int, text: str, tmp_path: Path
) -> None:
    tool, stamp = tmp_path / "pip-audit", tmp_path / "stamp"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    stamp.touch()
    words = ["make", "-s", "-C", str(ROOT), "audit", f"BIN={tmp_path}", f"STAMP={stamp}"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == code and text in ended.stdout + ended.stderr
