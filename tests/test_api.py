"""``pancseg.run``: the commands from Python do what the command line does."""

import logging
import os
import shutil
import sys
import warnings
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import pancseg
from pancseg.config import conf_folder
from pancseg.errors import Incomplete, PancsegError
from tests.conftest import PHANTOM, SHALLOW
from tests.tiny_dicom import write_series

REQUIRED: dict[str, dict[str, str]] = {
    "phantom": {"out": "out"},
    "prepare": {"source.images": "images", "source.labels": "labels"},
    "evaluate": {"checkpoint": "run/checkpoints/best.ckpt"},
    "predict": {"checkpoint": "best.ckpt", "input": "scans", "output": "out"},
    "report": {"run": "run"},
    "export": {"checkpoint": "best.ckpt", "output": "out"},
}


def test_train_returns_the_folder_of_the_run_or_sweep(prepared: Path, tmp_path: Path) -> None:
    odd = shutil.copytree(prepared, tmp_path / 'a b=c, (ä) "d"')  # which no grammar likes
    words = ["train", "experiment=smoke", *SHALLOW, "preview=true", "split.val=1"]
    small = {"data.spatial_size": [32, 32, 32], "data.spacing_mm": [8, 8, 8], "data.root": odd}
    run = pancseg.run(*words, small, {"hydra.run.dir": tmp_path / "run (1)"})
    assert run == tmp_path / "run (1)"
    assert (run / "preview.png").is_file() and (run / ".hydra" / "config.yaml").is_file()
    assert pancseg.run(*words, small).parent == tmp_path / "runs" / "smoke"  # named by the clock
    sweep = {"hydra.sweep.dir": tmp_path / "a sweep", "hydra.mode": "MULTIRUN"}
    assert pancseg.run(*words, "seed=1", small, sweep) == tmp_path / "a sweep"
    assert [*(tmp_path / "a sweep").glob("*/preview.png")]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["train", "data=nope"], "data=nope: no such choice"),
        (["train", {"trainer.max_epoch": 3}], r"did you mean trainer.max_epochs\?"),
        (["train", "data.root=nowhere"], r"nowhere holds no manifest.json"),
        (["paint"], "paint: no such command; there are phantom, prepare"),
        (["train", "-m"], "flags belong on the command line"),
    ],
)
def test_a_command_that_cannot_start_raises_its_message(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PancsegError, match=text):
        pancseg.run(*words)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", sorted(path.stem for path in conf_folder().glob("*.yaml")))
def test_every_command_composes_its_defaults_and_returns_a_folder(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = []
    monkeypatch.setattr(f"pancseg.{command}.{command}", composed.append)
    folder = pancseg.run(command, REQUIRED.get(command, {}))
    expected = {"evaluate": Path("run").resolve(), "doctor": Path("data/prepared")}
    assert folder == expected.get(command, folder)
    (cfg,) = composed
    assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def test_a_refused_series_raises_after_the_rest_was_prepared(dicom: Path, tmp_path: Path) -> None:
    first = min((dicom / "images").iterdir())
    shutil.copytree(first, tmp_path / "images" / first.name)
    write_series(tmp_path / "images" / "short", patient_id="short", count=1)
    given = {"source.images": tmp_path / "images", "source.labels": None, "data.root": "root"}
    with pytest.raises(Incomplete, match="1 refused, the rest is done"):
        pancseg.run("prepare", *SHALLOW, given, "processes=0")
    assert len(list(Path("root/cases").glob("*_image.nii.gz"))) == 1


def test_a_call_leaves_arguments_logging_and_environment_unchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = sys.argv[:], logging.getLogger().handlers[:], warnings.filters[:]
    out = pancseg.run("phantom", *PHANTOM, {"out": Path("phantoms"), "patients": 1})
    assert out == Path("phantoms") and (out / "images").is_dir()
    assert (sys.argv, logging.getLogger().handlers, warnings.filters) == before
    assert not HydraConfig.initialized() and not GlobalHydra.instance().is_initialized()
    assert "HYDRA_FULL_ERROR" not in os.environ
