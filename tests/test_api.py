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
from tests.conftest import PHANTOM, SHALLOW, contents
from tests.tiny_dicom import write_series

REQUIRED: dict[str, dict[str, str]] = {
    "phantom": {"out": "out"},
    "prepare": {"source.images": "images", "source.labels": "labels"},
    "evaluate": {"checkpoint": "run/checkpoints/best.ckpt"},
    "predict": {"checkpoint": "best.ckpt", "input": "scans", "output": "out"},
    "report": {"run": "run"},
    "export": {"checkpoint": "best.ckpt", "output": "out"},
}
HERE = "processes=0"  # starting processes takes longer than the work


@pytest.fixture(scope="module")
def odd(dicom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder under a name that no shell and no grammar likes."""
    root = tmp_path_factory.mktemp("odd") / 'a b=c, (ä) "d"'
    places = {f"source.{name}": dicom / name for name in ("images", "labels")}
    given = pancseg.run("prepare", *SHALLOW, {**places, "data.root": root}, "privacy=none", HERE)
    assert given == root
    return root


def test_prepare_writes_what_the_command_writes(odd: Path, prepared: Path) -> None:
    names = {name for name in contents(prepared) if name.startswith(("cases/", "groups/"))}
    assert len(names) > 6
    assert {n: contents(odd)[n] for n in names} == {n: contents(prepared)[n] for n in names}


def test_a_preview_lies_in_the_folder_that_is_returned(odd: Path, tmp_path: Path) -> None:
    small = {"data.spatial_size": [32, 32, 32], "data.spacing_mm": [8, 8, 8], "preview": True}
    where = {"data.root": odd, "hydra.run.dir": tmp_path / "run (1)", "split.val": 1}
    run = pancseg.run("train", "experiment=smoke", *SHALLOW, {**small, **where})
    assert run == tmp_path / "run (1)"
    assert (run / "preview.png").is_file()
    assert (run / ".hydra" / "config.yaml").is_file()


def test_a_run_is_named_by_the_clock_where_no_folder_is_given(odd: Path, tmp_path: Path) -> None:
    small = {"data.spatial_size": [32, 32, 32], "data.spacing_mm": [8, 8, 8], "preview": True}
    run = pancseg.run("train", "experiment=smoke", *SHALLOW, {**small, "data.root": odd})
    assert run.parent == tmp_path / "runs" / "smoke"
    assert (run / "preview.png").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "data=nope"], "data=nope: no such choice"),
        (["train", {"trainer.max_epoch": 3}], "did you mean trainer.max_epochs?"),
        (["train", "data.root=nowhere"], "nowhere holds no manifest.json"),
        (["evaluate"], "give checkpoint=RUN"),
        (["paint"], "paint: no such command; there are phantom, prepare"),
        (["train", "-m"], "flags belong on the command line"),
    ],
)
def test_a_command_that_cannot_start_raises_its_message(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PancsegError, match=says.replace("?", r"\?")):
        pancseg.run(*words)
    assert capsys.readouterr().err == ""


def test_doctor_runs_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    assert pancseg.run("doctor") == Path("data/prepared")
    assert "ok       packages  pancseg" in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(path.stem for path in conf_folder().glob("*.yaml")))
def test_every_command_composes_its_defaults_and_returns_a_folder(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = []
    monkeypatch.setattr(f"pancseg.{command}.{command}", composed.append)
    folder = pancseg.run(command, REQUIRED.get(command, {}))
    assert isinstance(folder, Path)
    (cfg,) = composed
    assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def test_a_refused_series_raises_after_the_rest_was_prepared(dicom: Path, tmp_path: Path) -> None:
    first = min((dicom / "images").iterdir())
    shutil.copytree(first, tmp_path / "images" / first.name)
    write_series(tmp_path / "images" / "short", patient_id="short", count=1)
    given = {"source.images": tmp_path / "images", "source.labels": None, "data.root": "root"}
    with pytest.raises(Incomplete, match="1 refused, the rest is done"):
        pancseg.run("prepare", *SHALLOW, given, HERE)
    assert len(list(Path("root/cases").glob("*_image.nii.gz"))) == 1


def test_a_call_leaves_arguments_logging_and_environment_unchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    argv, handlers, filters = sys.argv[:], logging.getLogger().handlers[:], warnings.filters[:]
    out = pancseg.run("phantom", *PHANTOM, {"out": Path("phantoms"), "patients": 1})
    assert out == Path("phantoms") and (out / "images").is_dir()
    assert (sys.argv, logging.getLogger().handlers) == (argv, handlers)
    assert warnings.filters == filters
    assert not HydraConfig.initialized() and not GlobalHydra.instance().is_initialized()
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_search_runs_from_python_and_its_report_lies_in_its_folder(
    prepared: Path, tmp_path: Path
) -> None:
    small = ["data.spacing_mm=[8,8,8]", "trainer.max_epochs=1", "hydra/sweeper=optuna"]
    words = [*small, *SHALLOW, "hydra.mode=MULTIRUN", "hydra.sweeper.n_trials=1"]
    given = {"data.root": prepared, "hydra.sweep.dir": tmp_path / "a search", "split.val": 1}
    searched = "optimizer.lr=interval(1e-4,1e-2)"
    folder = pancseg.run("train", "experiment=smoke", *words, searched, given)
    assert folder == tmp_path / "a search"
    assert (folder / "trial_0000" / "summary.json").is_file()
    again = pancseg.run("train", "experiment=smoke", *words, searched, given)
    assert again == folder  # though nothing was left to do
    assert pancseg.run("report", {"sweep": folder}) == folder
    assert (folder / "sweep.html").is_file()


def test_evaluate_returns_the_folder_that_it_writes_to(trained: Path, tmp_path: Path) -> None:
    lone = tmp_path / "given" / "best.ckpt"
    lone.parent.mkdir()
    shutil.copy(trained / "checkpoints" / "best.ckpt", lone)
    folder = pancseg.run("evaluate", {"checkpoint": lone, "subset": "test"})
    assert folder == lone.parent
    assert (folder / "scores" / "test.csv").is_file()
