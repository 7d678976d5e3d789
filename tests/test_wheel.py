"""A built wheel, installed into an empty venv and used from another folder."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_brings_its_configuration_on_board(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(PROJECT)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(PROJECT / "constraints.txt")]
    subprocess.run([*pip, "torch==2.13.0"], check=True)
    subprocess.run([*pip, str(next(tmp_path.glob("*.whl")))], check=True)
    away = tmp_path / "away"
    away.mkdir()

    def run(*words: str) -> str:
        done = subprocess.run(
            [str(python), "-m", *words], cwd=away, check=True, capture_output=True, text=True
        )
        return done.stdout

    assert "group64" in run("pancseg.train", "--help")
    run("pancseg.phantom", "out=d", "patients=3", "shape=[48,48,40]", "spacing_mm=[8,8,8]")
    shallow = ["data.depth=32", "data.tail=shift", "data.root=r", "privacy=none"]
    run("pancseg.prepare", "source.images=d/images", "source.labels=d/labels", *shallow)
    patches = ["sampling=patches", "sampling.steps_per_epoch=2", "data.spacing_mm=[8,8,8]"]
    run("pancseg.train", "experiment=smoke", *shallow, *patches, "hydra.run.dir=run")
    assert "held out" in run("pancseg.evaluate", "checkpoint=run/checkpoints/best.ckpt")
    assert (away / "run" / "scores" / "test.csv").is_file()
    assert (away / "run" / "report.html").is_file()
    run("pancseg.export", "checkpoint=run/checkpoints/best.ckpt", "output=bundle")
    assert (away / "bundle" / "configs" / "inference.json").is_file()
