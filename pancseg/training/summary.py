"""What stands in ``summary.json`` and in the loggers' tables of runs."""

import math
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from pancseg import __version__
from pancseg.config import changes_result, flatten
from pancseg.data.datamodule import CTDataModule
from pancseg.data.splits import SUBSETS
from pancseg.data.transforms import Plan
from pancseg.models.factory import count_parameters
from pancseg.training.callbacks import EpochReport, best_row

PACKAGES = ("torch", "pytorch-lightning", "monai", "numpy", "nibabel", "pydicom")
LEFT_OUT = ("data._target_", "data.root", "split.path")  # the last two may name patients
HYPERPARAMETERS = (
    "model", "loss", "optimizer", "scheduler", "sampling", "augment", "ema_decay", "split", "seed",
    "data",
)  # fmt: skip


def title_of(name: str, data: CTDataModule) -> str:
    """One line: patients and groups of each subset, and what is held out."""
    parts = [
        f"{subset} " + " ".join(f"{count} {unit}" for unit, count in counts.items())
        for subset, counts in counts_of(data).items()
    ]
    notes = {
        "PHANTOMS": has_phantoms(data),
        "NOT HELD OUT: validation and test are training patients": not data.split.held_out,
        "no validation: the best checkpoint is the last": not data.entries("val"),
    }
    return "; ".join([f"{name}: {', '.join(parts)}", *(note for note in notes if notes[note])])


def counts_of(data: CTDataModule) -> dict[str, dict[str, int]]:
    """Patients of each subset, and its groups, or its cases with patches."""
    unit = "cases" if data.sampling.uses_patches else "groups"
    return {
        subset: {"patients": len(getattr(data.split, subset)), unit: len(data.entries(subset))}
        for subset in SUBSETS
    }


def has_phantoms(data: CTDataModule) -> bool:
    """Whether any patient of the split is a phantom."""
    used = {patient for subset in SUBSETS for patient in getattr(data.split, subset)}
    return any(case.phantom for case in data.manifest.cases if case.patient in used)


def grid_of(data: CTDataModule) -> str:
    """The grid on which ``val/dice`` is measured."""
    plan = data.plan
    size = " x ".join(map(str, plan.spatial_size))
    spacing_mm = " x ".join(f"{step:g}" for step in plan.spacing_mm)
    if data.sampling.uses_patches:
        return f"voxels summed over a patient's whole cases, of {spacing_mm} mm"
    return f"voxels summed over a patient's groups, on the network's grid of {size}"


def describe_run(
    cfg: DictConfig, trainer: pl.Trainer, segmenter: pl.LightningModule, data: CTDataModule,
    report: EpochReport,
) -> dict[str, Any]:  # fmt: skip
    """Content of ``summary.json``: scores, geometry, split, hardware, versions."""
    rows = report.rows
    by_dice, by_loss = best_row(rows, "val/dice") or {}, best_row(rows, "val/loss") or {}
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    pruned = any(getattr(callback, "pruned", False) for callback in callbacks)
    versions = {"pancseg": __version__, "python": platform.python_version()}
    return {
        "name": cfg.name,
        "best_dice": by_dice.get("val/dice"),
        "best_epoch": by_dice.get("epoch"),
        "best_loss": by_loss.get("val/loss"),
        "best_loss_epoch": by_loss.get("epoch"),
        "geometry": f"val/dice: mean over patients, {grid_of(data)}; true scores are evaluate's",
        "epochs": rows[-1]["epoch"] if rows else 0,
        "partial": report.is_partial,
        "ended": "pruned" if pruned else "trained",
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "held_out": data.split.held_out,
        "seen_before": sorted(data.seen_before),
        "phantoms": has_phantoms(data),
        "split": {key: value for key, value in data.hparams["split"].items() if key != "path"},
        "parts": counts_of(data),
        "parameters": count_parameters(segmenter),
        "hardware": {
            **OmegaConf.to_container(cfg.hardware, resolve=True),  # type: ignore[dict-item]
            "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "device": str(trainer.strategy.root_device),
            "machine": platform.machine(),
            "system": platform.system(),
        },
        "versions": {**versions, **{package: version(package) for package in PACKAGES}},
        "data_fingerprint": data.fingerprint,
        "seed": cfg.seed,
    }


def log_hyperparameters(
    trainer: pl.Trainer, cfg: DictConfig, plan: Plan, summary: dict[str, Any]
) -> None:
    """Enter the run in the loggers' tables of hyperparameters, with its best score."""
    merged = OmegaConf.merge(cfg, {"data": asdict(plan)})
    planned: Any = OmegaConf.to_container(merged, resolve=True)
    flat = {
        key: str(value) if isinstance(value, list) else value
        for key, value in flatten({name: planned[name] for name in HYPERPARAMETERS})
        if key not in LEFT_OUT and changes_result(key) and value != {}
    }
    best = math.nan if summary["best_dice"] is None else summary["best_dice"]
    for logger in trainer.loggers:
        logger.log_hyperparams(flat)
        logger.log_metrics({"best/val_dice": best}, step=trainer.global_step)
        logger.save()
