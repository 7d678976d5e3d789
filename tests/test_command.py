"""Commands from a shell and from Python: how they end, and the configuration that they compose."""

import errno
import inspect
import logging
import os
import shutil
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from tqdm import tqdm

import pancseg
from pancseg import cli
from pancseg.config import conf_folder
from pancseg.data.sampling import Sampling
from pancseg.data.splits import make_split
from pancseg.errors import Incomplete, PancsegError
from pancseg.hardware import Machine
from pancseg.inference.postprocessing import PostprocessOptions
from pancseg.inference.scan_batch import ReviewThresholds
from pancseg.intake.checks import Checks
from pancseg.models.augmentation import Augmentation
from tests.conftest import PHANTOM, SHALLOW, UNMEASURED, compose
from tests.tiny_dicom import write_series

CONF = conf_folder()
GROUPS = [folder for folder in sorted(CONF.iterdir()) if folder.is_dir() and folder.name != "hydra"]
COMMANDS = [path.stem for path in sorted(CONF.glob("*.yaml"))]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train data=group32x", "no such choice; choices are group64, group90"),
        ("train data.spatial_size=[128,128,90]", "axis 2 is 90"),
        ("train trainer.max_epoch=3", "did you mean trainer.max_epochs?"),
        ("train zebra=3", "zebra: no such key; python -m pancseg.train --cfg job"),
        ("train data.root=nowhere", "nowhere holds no manifest.json; prepare it first"),
        ("train hardware=rtx4090 data.root=nowhere", "torch finds no GPU"),
        ("train ckpt_path=gone/checkpoints/last.ckpt", "there is no such file"),
        ("prepare source.images=empty source.labels=null", "empty: holds no image"),
        ("prepare source.images=gone source.labels=null", "gone: no such file or folder"),
        ("prepare data.depth=0 source.images=empty source.labels=null", "data.depth=0"),
        ("phantom", "out is not given"),
        ("phantom out=o patients=0", "at least 1 patient"),
        ("evaluate", "give checkpoint=RUN"),
        ("evaluate checkpoint=text.ckpt", "no checkpoint that pancseg.train wrote"),
        ("evaluate predictions=masks", "needs data.root=PREPARED"),
        ("evaluate predictions=masks data.root=x subset=val", "scores all of its cases"),
        ("evaluate checkpoint=a predictions=b", "give checkpoint="),
        ("evaluate checkpoint=[a,b]", "expected one, or the folder of a sweep"),
        ("evaluate checkpoint=a subset=all", "subset=all: expected one of"),
        ("evaluate checkpoint=a postprocess.threshold=7", "postprocess.threshold=7: expected"),
        ("evaluate checkpoint=a nsd_tolerances_mm=[0]", "expected lengths above 0 mm"),
        # checkpoint and options before the input, which is not there
        ("predict checkpoint=nowhere.ckpt", "checkpoint=nowhere.ckpt: there is no such file"),
        ("predict checkpoint=run tta=true", "was trained without mirrored images"),
        ("predict checkpoint=run shard=3/3", "shard=3/3: expected i/n"),
        ("predict checkpoint=run postprocess.threshold=auto", "auto is chosen by pancseg.evaluate"),
        ("predict checkpoint=run input=empty output=empty/out", "lies in the input"),
        ("predict checkpoint=run input=???", "input is not given"),
        ("export output=. checkpoint=a", "output=.: exists already"),
        ("export output=text.ckpt/out checkpoint=a", "cannot be written"),
        ("export output=out checkpoint=a format=torchscript", "expected one of bundle, onnx"),
        ("export output=out checkpoint=[a.ckpt,b.ckpt]", "gives 2 networks"),
        ("export output=out checkpoint=run", "train on patches (data=volume)"),
        ("export checkpoint=a", "output is not given"),
    ],
)
def test_a_command_that_cannot_start_says_why_in_one_line_and_from_python_raises_it(
    words, message, command, trained, capfd
):
    Path("empty").mkdir()
    Path("text.ckpt").write_text("not a checkpoint")
    Path("run").symlink_to(trained)
    name, *given = words.split()
    usual = {"input": "gone", "output": "out"} if name == "predict" else {}
    given += [f"{key}={value}" for key, value in usual.items() if f"{key}=" not in words]
    ended = command(name, *given)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert message in ended.err
    with pytest.raises(PancsegError) as raised:
        pancseg.run(name, *given)
    assert message in str(raised.value) and capfd.readouterr().err == ""
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"source.images=/data/Ärzte, (neu)=1": "/data/Ärzte, (neu)=1"},
        {"labels=[Drüse,7,1.5,null]": ["Drüse", 7, 1.5, None], "source.images=/a,b": "/a,b"},
        {"source.images=C:\\Jäger\\": "C:\\Jäger\\", "data.root=/x=y": "/x=y"},
        {"source.images=/ü'\"$HOME": "/ü'\"$HOME", "data.spacing_mm=[1,1,2.5]": [1, 1, 2.5]},
    ],
)
def test_a_value_that_needs_quotes_ends_with_a_line_to_paste_that_works(command, values):
    ended = command("prepare", "--cfg", "job", *values)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    line = f"{sys.executable} {ended.err.strip().partition('paste: python ')[2]}"
    pasted = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert pasted.returncode == 0, pasted.stderr
    shown = OmegaConf.create(pasted.stdout)
    for override, expected in values.items():
        assert OmegaConf.select(shown, override.partition("=")[0]) == expected


def test_under_windows_the_line_to_paste_is_quoted_as_its_shells_take_it(command, monkeypatch):
    monkeypatch.setattr(cli, "ON_WINDOWS", True)
    ended = command("prepare", "source.images=C:\\Jäger (2)", "source.labels=null")
    assert "\"source.images='C:\\Jäger (2)'\" source.labels=null" in ended.err


def test_the_traceback_is_there_for_those_who_ask():
    words, full = [sys.executable, "-m", "pancseg.phantom"], {"HYDRA_FULL_ERROR": "1"}
    ended = subprocess.run(words, env={**os.environ, **full}, capture_output=True, text=True)
    assert "Traceback" in ended.stderr and "out is not given" in ended.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_the_choices_and_loads_nothing_heavy(name):
    call = [sys.executable, "-X", "importtime", "-m", f"pancseg.{name}", "--help"]
    ended = subprocess.run(call, check=True, capture_output=True, text=True, env=UNMEASURED)
    assert f"python -m pancseg.{name}" in ended.stdout
    loaded = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "hydra" in loaded
    assert not loaded & {"torch", "pytorch_lightning", "monai", "optuna", "matplotlib", "scipy"}


def test_a_full_disk_is_reported_with_the_file_on_a_line_of_its_own(capfd):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/last.ckpt")
    message = "runs/last.ckpt: No space left on device; make room"
    assert cli.one_line(error, "train").startswith(message)
    tqdm(total=3).update(1)
    cli.close_progress_bars()
    print("line", file=sys.stderr)
    assert capfd.readouterr().err.endswith("\nline\n")


# from Python


def test_train_returns_the_folder_of_the_run_or_sweep(prepared, tmp_path):
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


REQUIRED = {
    "doctor": {}, "train": {}, "phantom": {"out": "out"}, "report": {"run": "run"},
    "prepare": {"source.images": "images", "source.labels": "labels"},
    "evaluate": {"checkpoint": "run/checkpoints/best.ckpt"},
    "predict": {"checkpoint": "best.ckpt", "input": "scans", "output": "out"},
    "export": {"checkpoint": "best.ckpt", "output": "out"},
}  # fmt: skip


def test_every_command_composes_its_defaults_and_returns_a_folder(monkeypatch):
    assert sorted(REQUIRED) == COMMANDS
    for name, given in REQUIRED.items():
        composed = []
        monkeypatch.setattr(f"pancseg.{name}.{name}", composed.append)
        folder = pancseg.run(name, given)
        expected = {"evaluate": Path("run").resolve(), "doctor": Path("data/prepared")}
        assert folder == expected.get(name, folder)
        assert OmegaConf.to_container(composed[0], resolve=True, throw_on_missing=True)
    for words, text in (("paint", "there are phantom, prepare"), ("-m", "on the command line")):
        with pytest.raises(PancsegError, match=text):
            pancseg.run(*(["train", words] if words == "-m" else [words]))


def test_a_refused_series_raises_after_the_rest_was_prepared(dicom):
    shutil.copytree(dicom / "images" / "phantom-3-000", "images/phantom-3-000")
    write_series(Path("images/short"), patient_id="short", count=1)
    given = {"source.images": "images", "source.labels": None, "data.root": "root"}
    with pytest.raises(Incomplete, match="1 refused, the rest is done"):
        pancseg.run("prepare", *SHALLOW, given, "processes=0")
    assert len(list(Path("root/cases").glob("*_image.nii.gz"))) == 1


def test_a_call_leaves_arguments_logging_and_environment_unchanged(monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = sys.argv[:], logging.getLogger().handlers[:], warnings.filters[:]
    out = pancseg.run("phantom", *PHANTOM, {"out": Path("phantoms"), "patients": 1})
    assert out == Path("phantoms") and (out / "images").is_dir()
    assert (sys.argv, logging.getLogger().handlers, warnings.filters) == before
    assert not HydraConfig.initialized() and not GlobalHydra.instance().is_initialized()
    assert "HYDRA_FULL_ERROR" not in os.environ


# configuration

NEEDED = {"file": "split.path=x", "monai": "model._target_=monai.networks.nets.SegResNet"}
FILLED = {"augment": Augmentation, "sampling": Sampling, "hardware": Machine, "split": make_split}
OF_NO_MACHINE = {"devices", "channels_last", "compile", "compile_mode", "benchmark", "fused"}
GIVEN_LATER = {"split", "sampling", "seed", "augment", "prepare", "params", "optimizer", "monitor"}
GIVEN_LATER |= {"options"}


def nodes(value):
    if isinstance(value, dict):
        yield from [value] if "_target_" in value else []
    values = value.values() if isinstance(value, dict) else value
    for inner in values if isinstance(value, dict | list) else ():
        yield from nodes(inner)


def parameters_of(target):
    module, _, name = target.rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    return {n: p for n, p in parameters.items() if n not in ("args", "kwargs")}


@pytest.mark.parametrize(
    "option", [f"{g.name}={f.stem}" for g in GROUPS for f in sorted(g.iterdir())]
)
def test_every_option_composes_and_its_keys_are_parameters(option):
    group, _, choice = option.partition("=")
    cfg = compose("train", option, *([NEEDED[choice]] if choice in NEEDED else []))
    for key in {"images", "labels", "folder"} & set(cfg.get("source") or {}):
        cfg.source[key] = key
    if filled := FILLED.get(group):
        assert set(cfg[group]) - OF_NO_MACHINE <= set(inspect.signature(filled).parameters)
    for node in nodes(OmegaConf.to_container(cfg, resolve=True)):
        target, keys = node["_target_"], set(node) - {"_target_"}
        if option in ("model=pretrained", "experiment=finetune") and "freeze" in node:
            continue  # the weights of init_from make its arguments
        parameters = parameters_of(target)
        assert keys <= set(parameters), target
        required = {name for name, p in parameters.items() if p.default is p.empty}
        expected = set(parameters) if target.startswith("pancseg.") else required
        assert expected - keys <= GIVEN_LATER, target


def test_defaults_of_the_configuration_are_those_of_the_code_and_the_command_line_wins():
    checks = OmegaConf.to_container(compose("prepare").checks)
    checks = {key: tuple(v) if isinstance(v, list) else v for key, v in checks.items()}
    assert Checks() == Checks(**checks)
    review, postprocess = compose("predict").review, compose("evaluate").postprocess
    assert OmegaConf.to_container(review) == vars(ReviewThresholds())
    assert OmegaConf.to_container(postprocess) == vars(PostprocessOptions())
    words = ["hardware=h200", "experiment=recipe64", "data.batch_size=3"]
    sizes = [compose("train", *words[:n]).data.batch_size for n in (1, 2, 3)]
    assert sizes == [8, 2, 3]
    for name, depth, size in (("recipe64", 64, 64), ("recipe90", 90, 96)):
        cfg = compose("train", f"experiment={name}", "hardware=h200")
        assert (cfg.data.depth, cfg.data.spatial_size) == (depth, [128, 128, size])
        assert (cfg.data.spacing_mm, cfg.data.window_hu) == ([1.5, 1.5, 1], [-200, 200])
        assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1e-5, 1e-5)
        assert (cfg.trainer.max_epochs, cfg.augment.noise_probability) == (600, 0)
