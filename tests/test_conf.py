"""Configuration: files equal constructors, everything composes, the command line wins."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from pancseg.config import conf_folder, register_resolvers
from pancseg.data.sampling import Sampling
from pancseg.data.splits import make_split
from pancseg.dicom.series import Repair
from pancseg.hardware import Machine
from pancseg.inference.postprocessing import PostprocessOptions
from pancseg.inference.scan_batch import ReviewThresholds
from pancseg.intake.checks import Checks
from pancseg.models.augmentation import Augmentation
from pancseg.models.factory import build
from pancseg.models.losses import deep_supervision_loss
from pancseg.structures import parse_structures

CONF = conf_folder()
GROUPS = [folder for folder in sorted(CONF.iterdir()) if folder.is_dir() and folder.name != "hydra"]
OPTIONS = [f"{folder.name}={path.stem}" for folder in GROUPS for path in sorted(folder.iterdir())]
PLACES = ["images", "labels", "folder"]


def composed(name: str, *overrides: str) -> DictConfig:
    register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, list(overrides))


def options(group: str) -> list[str]:
    return [path.stem for path in sorted((CONF / group).iterdir())]


def plain(node: DictConfig) -> dict[str, Any]:
    """A node as what a constructor is given, lists as tuples."""
    values = OmegaConf.to_container(node)
    assert isinstance(values, dict)
    return {str(k): tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every node with a ``_target_``."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def parameters_of(target: str) -> tuple[set[str], set[str]]:
    """All parameters of a target, and those without a default."""
    module, _, name = target.rpartition(".")
    signature = inspect.signature(getattr(import_module(module), name))
    found = {p.name: p for p in signature.parameters.values() if p.name not in ("args", "kwargs")}
    return set(found), {name for name, p in found.items() if p.default is p.empty}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_its_keys_are_parameters(option: str) -> None:
    group = option.partition("=")[0]
    given = {
        "split=file": "split.path=x.json",
        "model=monai": "model._target_=monai.networks.nets.SegResNet",
    }
    cfg = composed("train", option, *([given[option]] if option in given else []))
    for key in PLACES if group == "source" else []:
        if key in cfg.source:
            cfg.source[key] = key
    for node in nodes(OmegaConf.to_container(cfg, resolve=True)):
        target = node["_target_"]
        accepted, required = parameters_of(target)
        keys = set(node) - {"_target_"}
        assert keys <= accepted, target
        given_later = {"split", "sampling", "seed", "augment", "prepare", "params", "options"}
        given_later |= {"optimizer", "monitor"}
        assert required - keys <= given_later, target
        if target.startswith("pancseg."):
            assert keys == accepted - given_later, target


def test_groups_without_a_target_have_the_keys_of_what_they_fill() -> None:
    for name in options("split"):
        accepted = set(inspect.signature(make_split).parameters) - {"patients", "persons"}
        assert set(composed("train", f"split={name}").split) <= accepted
    for name in options("augment"):
        assert set(composed("train", f"augment={name}").augment) == set(
            inspect.signature(Augmentation).parameters
        )
    patches = composed("train", "sampling=patches").sampling
    assert set(patches) == set(inspect.signature(Sampling).parameters)
    assert composed("train", "sampling=whole").sampling == {"kind": "whole"}
    machine = set(inspect.signature(Machine).parameters) - {"advice"}
    for name in options("hardware"):
        chosen = {"devices", "channels_last", "compile", "compile_mode", "benchmark", "fused"}
        assert set(composed("train", f"hardware={name}").hardware) == machine | chosen
    cfg = composed("prepare")
    assert set(cfg.checks) == set(inspect.signature(Checks).parameters)
    assert set(cfg.repair) == set(inspect.signature(Repair).parameters)
    assert "shard" in cfg and "worker" not in cfg
    assert Checks() == Checks(**plain(cfg.checks))
    assert plain(composed("predict").review) == vars(ReviewThresholds())
    for name in ("evaluate", "predict"):
        assert plain(composed(name).postprocess) == vars(PostprocessOptions())
    for name in options("privacy"):
        assert set(composed("train", f"privacy={name}").privacy) == {"names", "key_file"}


@pytest.mark.parametrize("group", ["model", "loss", "optimizer"])
def test_every_network_loss_and_optimiser_is_built_and_takes_a_step(group: str) -> None:
    for name in options(group):
        small = {
            "model=monai": "model._target_=monai.networks.nets.SegResNet",
            "model=resunet": "model.width=8",
        }
        more = [small[f"{group}={name}"]] if f"{group}={name}" in small else []
        cfg = composed("train", "experiment=smoke", f"{group}={name}", *more)
        plain = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(plain, dict)
        network, loss = build(plain["model"], nn.Module), build(plain["loss"], nn.Module)
        optimizer = build(plain["optimizer"], torch.optim.Optimizer, network.parameters())
        label = (torch.rand(2, 1, 32, 32, 32) > 0.9).float()
        before = [p.clone() for p in network.parameters()]
        logits = network(torch.rand(2, 1, 32, 32, 32))
        deep_supervision_loss(loss, logits, label).backward()
        optimizer.step()
        assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_the_recipes_keep_their_settings() -> None:
    for name, depth, size in (("recipe64", 64, 64), ("recipe90", 90, 96)):
        cfg = composed("train", f"experiment={name}")
        assert (cfg.data.depth, list(cfg.data.spatial_size)) == (depth, [128, 128, size])
        assert list(cfg.data.spacing_mm) == [1.5, 1.5, 1.0]
        assert list(cfg.data.window_hu) == [-200, 200]
        assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1e-5, 1e-5)
        assert cfg.trainer.max_epochs == 600
        assert cfg.augment == composed("train", "augment=none").augment


def test_the_order_is_defaults_hardware_experiment_command_line() -> None:
    assert composed("train", "hardware=h200").data.batch_size == 8
    assert composed("train", "hardware=h200", "experiment=recipe64").data.batch_size == 2
    chosen = ["hardware=h200", "experiment=recipe64", "data.batch_size=3"]
    assert composed("train", *chosen).data.batch_size == 3
    assert composed("train", "hardware=auto", "hardware.precision=64").trainer.precision == 64


@pytest.mark.parametrize("name", [path.stem for path in sorted(CONF.glob("*.yaml"))])
def test_no_plain_key_has_the_name_of_a_group(name: str) -> None:
    cfg = OmegaConf.to_container(composed(name))
    assert isinstance(cfg, dict)
    groups = {folder.name for folder in GROUPS}
    plain = {key for key, value in cfg.items() if not isinstance(value, dict)}
    assert not plain & groups


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("pancreas", {"pancreas": (1,)}),
        ("liver", {"liver": (1,)}),
        ("pancreas_tumour", {"pancreas": (1, 2), "tumour": (2,)}),
    ],
)
def test_structures_are_stored_under_these_codes(
    name: str, values: dict[str, tuple[int, ...]]
) -> None:
    node = OmegaConf.to_container(composed("prepare", f"structures={name}").structures)
    structures = parse_structures(node)  # type: ignore[arg-type]
    assert {structure.name: structure.values for structure in structures} == values
    assert all(structure.code.isdigit() for structure in structures)


def test_every_structure_of_conf_is_tested() -> None:
    assert set(options("structures")) == {"pancreas", "liver", "pancreas_tumour"}


def test_conf_is_beside_the_package_or_in_it() -> None:
    assert (CONF / "train.yaml").is_file()
    assert Path(CONF).is_absolute()
