"""A built wheel in an empty environment."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_trains_and_scores(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(tmp_path / "venv", with_pip=True)
    (tmp_path / "away").mkdir()

    def run(*words):
        python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        options = {"cwd": tmp_path / "away", "stdout": subprocess.PIPE, "text": True}
        return subprocess.run([str(python), "-m", *words], check=True, **options).stdout

    pip = ["pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    run(*pip, "torch==2.13.0")
    run(*pip, str(next(tmp_path.glob("*.whl"))))
    run("pancseg.phantom", "out=d", "patients=3", "shape=[48,48,40]", "spacing_mm=[8,8,8]")
    shallow = ["data.depth=32", "data.tail=shift", "data.root=r", "privacy=none"]
    run("pancseg.prepare", "source.images=d/images", "source.labels=d/labels", *shallow)
    patches = ["sampling=patches", "sampling.steps_per_epoch=2", "data.spacing_mm=[8,8,8]"]
    run("pancseg.train", "experiment=smoke", *shallow, *patches, "hydra.run.dir=run")
    assert "held out" in run("pancseg.evaluate", "checkpoint=run/checkpoints/best.ckpt")
    assert (tmp_path / "away" / "run" / "report.html").is_file()
