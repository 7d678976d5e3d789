"""Files beside a checkpoint, and the calibration of the confidence that ``predict`` reports."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pancseg.files import read_json, write_json

HASH = "checkpoint_sha256"
LIMITS = {"scale": (0, 100), "n": (0, 1e9), "lowest": (0, 1)}
Limits = Mapping[str, tuple[float, float]]


def write_sidecar(path: Path, checkpoint: Path, values: dict[str, Any]) -> None:
    """Write values that hold for the weights of a checkpoint only."""
    write_json(path, {**values, HASH: file_sha256(checkpoint)})


def read_sidecar(path: Path, checkpoint: Path, content: str, limits: Limits) -> dict[str, Any]:
    """Values beside a checkpoint, in limits; empty without a file, or if of other weights."""
    if not path.is_file():
        return {}

    def is_valid(content: Any) -> bool:
        named = content if isinstance(content, dict) else {}
        in_limits = (is_between(named.get(key), *limits[key]) for key in limits)
        return isinstance(named.get(HASH), str) and all(in_limits)

    values = read_json(path, content, is_valid)
    return {n: values[n] for n in limits} if values[HASH] == file_sha256(checkpoint) else {}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_between(value: Any, low: float, high: float) -> bool:
    """Whether a value is a number from ``low`` to ``high``, or a truth value if they are.

    >>> is_between(0.5, 0, 1), is_between(float("nan"), 0, 1), is_between(True, 0, 1)
    (True, False, False)
    """
    is_right_type = isinstance(value, int | float) and isinstance(value, bool) is (low is False)
    return is_right_type and low <= value <= high


@dataclass(frozen=True)
class Calibration:
    """Correction of the expected Dice, fitted on validation patients."""

    scale: float = 1.0  # of the expected Dice; above 1 for a network that underestimates itself
    n: int = 0  # validation patients
    lowest: float = 0.0  # of the calibrated confidences of validation patients

    def confidence(self, expected_dice: float) -> float:
        """Calibrated Dice, 0 to 1."""
        return min(1.0, expected_dice * self.scale)


def fit_calibration(expected: Sequence[float], dice: Sequence[float]) -> Calibration:
    """Least-squares factor from expected to measured Dice of each patient, without an intercept.

    >>> fit_calibration([0.9, 0.8], [0.45, 0.4])
    Calibration(scale=0.5, n=2, lowest=0.4)
    """
    e, d = np.array(expected, np.float64), np.array(dice, np.float64)
    if not (squares := float(e @ e)):
        return Calibration()
    scale = round(float(e @ d) / squares, 4)
    return Calibration(scale, len(e), round(min(1.0, float(e.min()) * scale), 4))


def mean_calibration(members: Sequence[Calibration]) -> Calibration:
    """Calibration of an ensemble: mean ``scale``, sum of ``n``, mean ``lowest``.

    >>> mean_calibration([Calibration(0.9, 3, 0.8), Calibration(1.1, 4, 0.7)])
    Calibration(scale=1.0, n=7, lowest=0.75)
    """
    scale, lowest = np.mean([(member.scale, member.lowest) for member in members], axis=0).tolist()
    return Calibration(round(scale, 4), sum(member.n for member in members), round(lowest, 4))


def calibration_path(checkpoint: Path, structure: str = "") -> Path:
    """``best.confidence.json`` beside the checkpoint, of several ``best.confidence.tumour.json``.

    ``structure`` is the name of one of several.
    """
    return checkpoint.with_suffix(f".confidence{'.' * bool(structure)}{structure}.json")


def write_calibration(checkpoint: Path, calibration: Calibration, structure: str = "") -> None:
    """Write a calibration beside its checkpoint."""
    write_sidecar(calibration_path(checkpoint, structure), checkpoint, asdict(calibration))


def read_calibration(checkpoint: Path, structure: str = "") -> Calibration:
    """Calibration of a checkpoint; a factor of 1 where there is none."""
    path, content = calibration_path(checkpoint, structure), "a calibration of the confidence"
    return Calibration(**read_sidecar(path, checkpoint, content, LIMITS))
