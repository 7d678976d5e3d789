"""Files beside a checkpoint, and the calibration of the confidence that ``predict`` reports."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pancseg.files import read_json, write_json

HASH = "checkpoint_sha256"
LIMITS = {"scale": 100, "n": 1e9, "lowest": 1}


def write_sidecar(path: Path, checkpoint: Path, values: dict[str, Any]) -> None:
    """Write values that hold for the weights of a checkpoint only."""
    write_json(path, {**values, HASH: file_sha256(checkpoint)})


def read_sidecar(
    path: Path, checkpoint: Path, content: str, check: Callable[[dict[str, Any]], bool]
) -> dict[str, Any] | None:
    """Values beside a checkpoint that pass a check; None without a file, or if of other weights."""
    if not path.is_file():
        return None
    values = read_json(
        path, content, lambda v: isinstance(v, dict) and isinstance(v.get(HASH), str) and check(v)
    )
    return values if values[HASH] == file_sha256(checkpoint) else None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_between(value: Any, low: float, high: float) -> bool:
    """Whether a value is a number from ``low`` to ``high``.

    >>> is_between(0.5, 0, 1), is_between(float("nan"), 0, 1), is_between(True, 0, 1)
    (True, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


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


def calibration_path(checkpoint: Path) -> Path:
    """``best.confidence.json`` beside the checkpoint."""
    return checkpoint.with_suffix(".confidence.json")


def write_calibration(checkpoint: Path, calibration: Calibration) -> None:
    """Write a calibration beside its checkpoint."""
    write_sidecar(calibration_path(checkpoint), checkpoint, asdict(calibration))


def read_calibration(checkpoint: Path) -> Calibration:
    """Calibration of a checkpoint; a factor of 1 where there is none."""
    path = calibration_path(checkpoint)
    values = read_sidecar(
        path,
        checkpoint,
        "a calibration of the confidence",
        lambda v: all(is_between(v.get(name), 0, limit) for name, limit in LIMITS.items()),
    )
    return Calibration(**{name: values[name] for name in LIMITS}) if values else Calibration()
