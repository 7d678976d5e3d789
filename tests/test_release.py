"""A built wheel in an empty environment; ``make audit`` without a network."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOUND = "printf 'Name Version ID Fix Versions\\ntorch 1.0 PYSEC-1 2.0'; exit 1"


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
    tool, package, stamp = (tmp_path / name for name in ("pip-audit", "package", "stamp"))
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    package.touch()
    stamp.touch()
    installed = [f"BIN={tmp_path}", f"STAMP={stamp}", f"PACKAGE={package}"]  # nothing is installed
    words = ["make", "-s", "-C", str(ROOT), "audit", *installed]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == code and text in ended.stdout + ended.stderr
