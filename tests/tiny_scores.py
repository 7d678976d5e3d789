"""Folders of scored runs, written without a training."""

import json
from typing import Any

import numpy as np

from pancseg.files import write_json
from pancseg.metrics.tables import summarise, write_scores

ABOUT: dict[str, Any] = {
    "subset": "test", "held_out": True, "phantoms": False, "geometry": "whole cases", "flags": {},
    "changed_since_prepared": [],
}  # fmt: skip
OF_A_CHECKPOINT: dict[str, Any] = {
    "split": {"rule": "holdout", "seed": 0}, "checkpoints": 1, "checkpoint": ["best.ckpt"],
    "models_per_patient": 1, "checkpoint_epoch": [7], "data_fingerprint": "f" * 64,
    "arithmetic": "32-true", "postprocess": [{"threshold": 0.5, "largest_component": False}],
    "postprocess_origin": "plain", "missing_folds": [],
}  # fmt: skip
SUMMARY: dict[str, Any] = {
    "name": "strong", "best_dice": 0.8, "best_epoch": 7, "epochs": 9, "seconds": 1234.5,
    "parts": {"train": {"patients": 5, "groups": 12}}, "parameters": 1_234_567, "seed": 0,
    "hardware": {"device": "cpu", "machine": "x86_64", "system": "Linux", "precision": "32-true"},
    "versions": {"pancseg": "0.2.0", "torch": "2.9"}, "phantoms": False,
}  # fmt: skip


def score_row(patient, dice, **columns):
    """A row of the scores table; without Dice, of a case whose reference is empty."""
    row: dict[str, Any] = {
        "patient": patient, "case": patient, "dice": dice, "nsd_1mm": dice, "nsd_2mm": dice,
        "nsd_3mm": dice, "hd95_mm": 5.0, "assd_mm": 1.0, "precision": dice, "recall": dice,
        "volume_ml": 60.0, "reference_ml": 50.0, "volume_error_ml": 10.0,
        "volume_error_percent": 20.0, "components": 1, "centroid_mm": 2.0, "dice_plain": dice,
        "recipe_metric": 0.9, "expected_dice": 0.8, "fold": None, "spacing_x_mm": 0.8,
        "spacing_y_mm": 0.8, "spacing_z_mm": 2.5, "manufacturer": "siemens", "contrast": "yes",
        "status": "scored",
    }  # fmt: skip
    if dice is None:
        row |= {name: None for name in row if name not in ("patient", "case", "fold")}
        row |= {"volume_ml": 1.0, "reference_ml": 0.0, "components": 1, "status": "empty_reference"}
    return {**row, **columns}


def write_run(folder, rows, subset="test", *, train=(), **about):
    """Write a run with scores; with ``subset=external`` scores of masks of another tool."""
    counts = {}
    if subset == "external":
        about = {"held_out": None, "predictions": "nnunet", **about}
        nothing = dict.fromkeys(("dice_plain", "recipe_metric", "expected_dice"))
        rows = [row | nothing for row in rows]
    else:
        about = {**OF_A_CHECKPOINT, **about}
        bins = np.zeros((3, 10))
        bins[:, 9] = 100, 95, 90
        counts = {row["patient"]: [bins] for row in rows if row["dice"] is not None}
        for path in (folder / "checkpoints", folder / ".hydra"):
            path.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "best.ckpt").touch()
        write_json(folder / "summary.json", SUMMARY)
        write_json(folder / "splits.json", {"train": train, "val": [], "test": []})
        (folder / ".hydra" / "config.yaml").write_text("seed: 0\n")
        trial = "trial={storage: sqlite:////secret/Miller.db, number: 3}"  # of a search
        overrides = ["experiment=strong", "data.root=/secret/Miller", trial]
        (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    figures = summarise(rows, counts, {**ABOUT, "subset": subset, **about})
    write_scores(folder / "scores", subset, rows, figures)
    return folder
