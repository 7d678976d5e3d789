"""How commands end: one line, the right code; the configuration that they compose."""

import errno
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tqdm import tqdm

from pancseg import cli
from pancseg.cli import close_progress_bars, one_line
from pancseg.config import conf_folder
from pancseg.data.sampling import Sampling
from pancseg.data.splits import make_split
from pancseg.hardware import Machine
from pancseg.inference.postprocessing import PostprocessOptions
from pancseg.inference.scan_batch import ReviewThresholds
from pancseg.intake.checks import Checks
from pancseg.models.augmentation import Augmentation
from tests.conftest import UNMEASURED, Command, compose

CONF = conf_folder()
GROUPS = [folder for folder in sorted(CONF.iterdir()) if folder.is_dir() and folder.name != "hydra"]
COMMANDS = [path.stem for path in sorted(CONF.glob("*.yaml"))]
NEEDED = {
    "split=file": "split.path=x",
    "model=monai": "model._target_=monai.networks.nets.SegResNet",
}


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
        ("evaluate", "give checkpoint=RUN"),
        ("evaluate checkpoint=text.ckpt", "no checkpoint that pancseg.train wrote"),
        ("evaluate checkpoint=text.ckpt subset=all", "expected one of train, val, test"),
        ("phantom", "out is not given"),
        ("phantom out=o patients=0", "at least 1 patient"),
    ],
)
def test_a_command_that_cannot_start_says_why_in_one_line_and_ends_with_2(
    words: str, message: str, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    ended = command(*words.split())
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert message in ended.err


@pytest.mark.parametrize(
    "values",
    [
        {"source.images=/data/Ärzte, (neu)=1": "/data/Ärzte, (neu)=1"},
        {"labels=[Drüse,7,1.5,null]": ["Drüse", 7, 1.5, None], "source.images=/a,b": "/a,b"},
        {"source.images=C:\\Jäger\\": "C:\\Jäger\\", "data.root=/x=y": "/x=y"},
        {"source.images=/ü'\"$HOME": "/ü'\"$HOME", "data.spacing_mm=[1,1,2.5]": [1, 1, 2.5]},
    ],
)
def test_a_value_that_needs_quotes_ends_with_a_line_to_paste_that_works(
    command: Command, values: dict[str, Any]
) -> None:
    ended = command("prepare", "--cfg", "job", *values)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    line = f"{sys.executable} {ended.err.strip().partition('paste: python ')[2]}"
    pasted = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert pasted.returncode == 0, pasted.stderr
    shown = OmegaConf.create(pasted.stdout)
    for override, expected in values.items():
        assert OmegaConf.select(shown, override.partition("=")[0]) == expected


def test_under_windows_the_line_to_paste_is_quoted_as_its_shells_take_it(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "ON_WINDOWS", True)
    ended = command("prepare", "source.images=C:\\Jäger (2)", "source.labels=null")
    assert "\"source.images='C:\\Jäger (2)'\" source.labels=null" in ended.err


def test_the_traceback_is_there_for_those_who_ask() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pancseg.phantom"], check=False,
        env={**os.environ, "HYDRA_FULL_ERROR": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" in ended.stderr and "out is not given" in ended.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_the_choices_and_loads_nothing_heavy(name: str) -> None:
    call = [sys.executable, "-X", "importtime", "-m", f"pancseg.{name}", "--help"]
    ended = subprocess.run(call, check=True, capture_output=True, text=True, env=UNMEASURED)
    assert f"python -m pancseg.{name}" in ended.stdout
    loaded = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "hydra" in loaded
    assert not loaded & {"torch", "pytorch_lightning", "monai", "optuna", "matplotlib", "scipy"}


def test_a_full_disk_is_reported_with_the_file_on_a_line_of_its_own(
    capfd: pytest.CaptureFixture[str],
) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/last.ckpt")
    assert one_line(error, "train").startswith("runs/last.ckpt: No space left on device; make room")
    tqdm(total=3).update(1)
    close_progress_bars()
    print("line", file=sys.stderr)
    assert capfd.readouterr().err.endswith("\nline\n")


# configuration

FILLED = {"augment": Augmentation, "sampling": Sampling, "hardware": Machine, "split": make_split}
OF_NO_MACHINE = {"devices", "channels_last", "compile", "compile_mode", "benchmark", "fused"}
GIVEN_LATER = {"split", "sampling", "seed", "augment", "prepare", "params", "optimizer", "monitor"}
GIVEN_LATER |= {"options"}


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every node with a ``_target_``."""
    if isinstance(value, dict):
        yield from [value] if "_target_" in value else []
    values = value.values() if isinstance(value, dict) else value
    for inner in values if isinstance(value, dict | list) else ():
        yield from nodes(inner)


def parameters_of(target: str) -> dict[str, inspect.Parameter]:
    module, _, name = target.rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    return {n: p for n, p in parameters.items() if n not in ("args", "kwargs")}


@pytest.mark.parametrize(
    "option", [f"{g.name}={f.stem}" for g in GROUPS for f in sorted(g.iterdir())]
)
def test_every_option_composes_and_its_keys_are_parameters(option: str) -> None:
    cfg, group = compose("train", option, *NEEDED.get(option, "").split()), option.partition("=")[0]
    for key in {"images", "labels", "folder"} & set(cfg.get("source") or {}):
        cfg.source[key] = key
    if filled := FILLED.get(group):
        assert set(cfg[group]) - OF_NO_MACHINE <= set(inspect.signature(filled).parameters)
    for node in nodes(OmegaConf.to_container(cfg, resolve=True)):
        target, keys = node["_target_"], set(node) - {"_target_"}
        parameters = parameters_of(target)
        assert keys <= set(parameters), target
        required = {name for name, p in parameters.items() if p.default is p.empty}
        expected = set(parameters) if target.startswith("pancseg.") else required
        assert expected - keys <= GIVEN_LATER, target


def test_defaults_of_the_configuration_are_those_of_the_code() -> None:
    checks = OmegaConf.to_container(compose("prepare").checks)
    assert Checks() == Checks(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in checks.items()}
    )
    for name, node, filled in (
        ("predict", "review", ReviewThresholds()),
        ("evaluate", "postprocess", PostprocessOptions()),
    ):
        assert OmegaConf.to_container(compose(name)[node]) == vars(filled)


def test_the_recipes_keep_their_settings_and_the_command_line_wins() -> None:
    for name, depth, size in (("recipe64", 64, 64), ("recipe90", 90, 96)):
        cfg = compose("train", f"experiment={name}", "hardware=h200")
        assert (cfg.data.depth, cfg.data.spatial_size) == (depth, [128, 128, size])
        assert (cfg.data.spacing_mm, cfg.data.window_hu) == ([1.5, 1.5, 1], [-200, 200])
        assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1e-5, 1e-5)
        assert (cfg.trainer.max_epochs, cfg.augment.noise_probability) == (600, 0)
    words = ["hardware=h200", "experiment=recipe64", "data.batch_size=3"]
    sizes = [compose("train", *words[:n]).data.batch_size for n in (1, 2, 3)]
    assert sizes == [8, 2, 3]
