"""Commands from a shell and from Python: how they end, and the configuration that they compose."""

import inspect
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import pancseg
from pancseg.config import conf_folder
from pancseg.errors import Incomplete, PancsegError
from tests.conftest import SHALLOW, compose
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
        ("prepare source.images=empty source.labels=null", "empty: holds no image"),
        ("phantom", "out is not given"),
        ("evaluate", "give checkpoint=RUN"),
        ("evaluate checkpoint=text.ckpt", "no checkpoint that pancseg.train wrote"),
        ("evaluate predictions=masks", "predictions: give data.root=PREPARED"),
        # checkpoint and options before the input, which is not there
        ("predict checkpoint=nowhere.ckpt", "checkpoint=nowhere.ckpt: there is no such file"),
        ("predict checkpoint=run tta=true", "was trained without mirrored images"),
        ("predict checkpoint=run shard=3/3", "shard=3/3: expected i/n"),
        ("predict checkpoint=run input=empty output=empty/out", "lies in the input"),
        ("export output=. checkpoint=a", "output=.: exists already"),
        ("export output=out checkpoint=run", "train on patches (data=volume)"),
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


def test_a_value_that_needs_quotes_ends_with_a_line_to_paste_that_works(command):
    odd = "C:\\ü'\"$HOME (neu), =1\\"
    ended = command("prepare", "--cfg", "job", f"source.images={odd}", "labels=[Drüse,7,1.5,null]")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    line = f"{sys.executable} {ended.err.strip().partition('paste: python ')[2]}"
    pasted = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert pasted.returncode == 0, pasted.stderr
    shown = OmegaConf.create(pasted.stdout)
    assert (shown.source.images, shown.labels) == (odd, ["Drüse", 7, 1.5, None])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_the_choices_and_loads_nothing_heavy(name):
    call = [sys.executable, "-X", "importtime", "-m", f"pancseg.{name}", "--help"]
    ended = subprocess.run(call, check=True, capture_output=True, text=True)
    assert f"python -m pancseg.{name}" in ended.stdout
    loaded = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "hydra" in loaded
    assert not loaded & {"torch", "pytorch_lightning", "monai", "optuna", "matplotlib", "scipy"}


def test_a_command_whose_output_nobody_reads_ends_without_a_message():
    for options in ([], ["-u"]):
        reader, writer = os.pipe()
        os.close(reader)
        call = [sys.executable, *options, "-m", "pancseg.report", "--help"]
        ended = subprocess.run(call, check=False, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        assert (ended.returncode in (0, 141), ended.stderr) == (True, b"")


def test_train_returns_the_folder_of_the_run_or_sweep(prepared, tmp_path):
    odd = shutil.copytree(prepared, tmp_path / 'a b=c, (ä) "d"')  # which no grammar likes
    words = ["train", "experiment=smoke", *SHALLOW, "preview=true", "split.val=1"]
    small = {"data.spatial_size": [32, 32, 32], "data.spacing_mm": [8, 8, 8], "data.root": odd}
    run = pancseg.run(*words, small, {"hydra.run.dir": tmp_path / "run (1)"})
    assert run == tmp_path / "run (1)" and (run / "preview.png").is_file()
    sweep = {"hydra.sweep.dir": tmp_path / "a sweep", "hydra.mode": "MULTIRUN"}
    assert pancseg.run(*words, "seed=1", small, sweep) == tmp_path / "a sweep"
    assert [*(tmp_path / "a sweep").glob("*/preview.png")]


def test_a_refused_series_raises_after_the_rest_was_prepared(dicom):
    shutil.copytree(dicom / "images" / "phantom-3-000", "images/phantom-3-000")
    write_series(Path("images/short"), patient_id="short", count=1)
    given = {"source.images": "images", "source.labels": None, "data.root": "root"}
    with pytest.raises(Incomplete, match="1 refused, the rest is done"):
        pancseg.run("prepare", *SHALLOW, given, "processes=0")
    assert len(list(Path("root/cases").glob("*_image.nii.gz"))) == 1


NEEDED = {"file": "split.path=x", "monai": "model._target_=monai.networks.nets.SegResNet"}
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
    choice = option.partition("=")[2]
    cfg = compose("train", option, *([NEEDED[choice]] if choice in NEEDED else []))
    for key in {"images", "labels", "folder"} & set(cfg.get("source") or {}):
        cfg.source[key] = key
    for node in nodes(OmegaConf.to_container(cfg, resolve=True)):
        target, keys = node["_target_"], set(node) - {"_target_"}
        if option in ("model=pretrained", "experiment=finetune") and "freeze" in node:
            continue  # the weights of init_from make its arguments
        parameters = parameters_of(target)
        assert keys <= set(parameters), target
        required = {name for name, p in parameters.items() if p.default is p.empty}
        expected = set(parameters) if target.startswith("pancseg.") else required
        assert expected - keys <= GIVEN_LATER, target


def test_the_recipes_have_their_settings_and_the_command_line_wins():
    words = ["hardware=h200", "experiment=recipe64", "data.batch_size=3"]
    sizes = [compose("train", *words[:n]).data.batch_size for n in (1, 2, 3)]
    assert sizes == [8, 2, 3]
    for name, depth, size in (("recipe64", 64, 64), ("recipe90", 90, 96)):
        cfg = compose("train", f"experiment={name}", "hardware=h200")
        assert (cfg.data.depth, cfg.data.spatial_size) == (depth, [128, 128, size])
        assert (cfg.data.spacing_mm, cfg.data.window_hu) == ([1.5, 1.5, 1], [-200, 200])
        assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1e-5, 1e-5)
        assert (cfg.trainer.max_epochs, cfg.augment.noise_probability) == (600, 0)
