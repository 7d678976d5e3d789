"""From a probability to a mask: threshold and components, as given or chosen on validation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from pancseg.errors import PancsegError
from pancseg.geometry import CONNECTIVITY_26, bounding_box
from pancseg.inference.calibration import is_between, read_sidecar, write_sidecar

AUTO = "auto"
THRESHOLDS = sorted((round(0.05 * i, 2) for i in range(2, 19)), key=lambda t: abs(t - 0.5))
LIMITS = {"threshold": (1e-6, 1 - 1e-6), "largest_component": (False, True)}  # in files
MIN_GAIN = 1e-4  # of the mean Dice, to leave the defaults


@dataclass(frozen=True)
class Postprocess:
    """How a probability becomes a mask."""

    threshold: float = 0.5  # voxels above it belong to the mask
    largest_component: bool = False  # whether only that is kept, 26-connected

    def mask_of(self, probability: NDArray[np.float32]) -> NDArray[np.bool_]:
        """The mask, of the probability's shape."""
        above = probability > self.threshold
        return largest_component(above) if self.largest_component else above

    def describe(self) -> str:
        """For people, such as ``threshold 0.45, largest component``."""
        components = "largest component" if self.largest_component else "all components"
        return f"threshold {self.threshold:g}, {components}"


DEFAULT = Postprocess()


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest 26-connected component of a mask."""
    box = bounding_box(mask)
    labels, count = ndimage.label(mask[box], CONNECTIVITY_26)
    if count < 2:
        return mask
    largest = np.zeros_like(mask)
    # bincount copies to int64: of all voxels, that would be 2 GB for a long scan
    largest[box] = labels == np.bincount(labels[mask[box]]).argmax()
    return largest


@dataclass(frozen=True)
class PostprocessOptions:
    """The options ``postprocess.*``: a value, ``auto`` (chosen on validation patients), or None.

    None takes what was chosen before for the checkpoint, else the default. Of a lesion all
    components are kept.
    """

    threshold: float | str | None = None
    largest_component: bool | str | None = None

    def __post_init__(self) -> None:
        t, largest = self.threshold, self.largest_component
        if t not in (None, AUTO) and (not is_between(t, 0, 1) or t in (0, 1)):
            raise PancsegError(f"postprocess.threshold={t}: expected auto or a number in 0 to 1")
        if largest not in (None, AUTO, True, False):
            raise PancsegError(f"postprocess.largest_component={largest}: expected true or false")

    @property
    def is_auto(self) -> bool:
        """Whether something is chosen on validation patients."""
        return AUTO in (self.threshold, self.largest_component)

    @property
    def is_given(self) -> bool:
        """Whether something is given by hand."""
        return any(value not in (None, AUTO) for value in vars(self).values())

    def override(self, chosen: Postprocess | None, kind: str = "organ") -> Postprocess:
        """What was chosen, else the default, with the given values in its place."""
        t, largest, chosen = self.threshold, self.largest_component, chosen or DEFAULT
        is_organ = kind == "organ"
        return Postprocess(
            chosen.threshold if t in (None, AUTO) else float(t),
            chosen.largest_component if largest in (None, AUTO) else bool(largest) and is_organ,
        )

    def candidates(self, chosen: Postprocess, kind: str = "organ") -> list[Postprocess]:
        """Settings to try where something is ``auto``, those nearest to the defaults first.

        >>> [c.largest_component for c in PostprocessOptions(0.4, "auto").candidates(DEFAULT)]
        [False, True]
        """
        fixed = self.override(chosen, kind)
        thresholds = THRESHOLDS if self.threshold == AUTO else [fixed.threshold]
        is_chosen = self.largest_component == AUTO and kind == "organ"
        largest = [False, True] if is_chosen else [fixed.largest_component]
        return [Postprocess(threshold, keep) for keep in largest for threshold in thresholds]


def mean_postprocess(members: list[Postprocess]) -> Postprocess:
    """Of an ensemble: the mean threshold, the largest component if all members keep it alone.

    >>> mean_postprocess([Postprocess(0.4, True), Postprocess(0.6, False)])
    Postprocess(threshold=0.5, largest_component=False)
    """
    threshold = float(np.mean([member.threshold for member in members]))
    return Postprocess(threshold, all(member.largest_component for member in members))


def choose(
    candidates: list[Postprocess], dice: Sequence[tuple[str, *tuple[float, ...]]]
) -> tuple[Postprocess, int]:
    """Choice by the mean Dice over validation patients, and their number.

    ``candidates`` begin with the defaults; ``dice`` are the patient of a case, and
    :func:`dice_of_each`.
    """
    patients = pd.DataFrame(dice).groupby(0).mean() if dice else pd.DataFrame()
    means = patients.mean().tolist()
    best = 0
    for i, mean in enumerate(means):
        if mean > means[best] + MIN_GAIN:
            best = i
    return candidates[best], len(patients)


def dice_of_each(
    candidates: list[Postprocess], probability: NDArray[np.float32], reference: NDArray[np.bool_]
) -> list[float]:
    """Dice of a case by each candidate; masks and reference are not both empty."""
    box = bounding_box(reference | (probability > min(c.threshold for c in candidates)))
    p, inside = probability[box], reference[box]
    masks = (candidate.mask_of(p) for candidate in candidates)
    return [2 * int((m & inside).sum()) / (int(m.sum()) + int(inside.sum())) for m in masks]


def postprocess_path(checkpoint: Path, structure: str = "") -> Path:
    """``best.postprocess.json`` beside the checkpoint, of several ``best.postprocess.tumour.json``.

    ``structure`` is the name of one of several.
    """
    return checkpoint.with_suffix(f".postprocess{'.' * bool(structure)}{structure}.json")


def write_postprocess(
    checkpoint: Path, chosen: Postprocess, structure: str = "", **details: Any
) -> None:
    """Write a choice beside its checkpoint."""
    path = postprocess_path(checkpoint, structure)
    write_sidecar(path, checkpoint, {**asdict(chosen), **details})


def read_postprocess(checkpoint: Path, structure: str = "") -> Postprocess | None:
    """What was chosen for a checkpoint on validation patients; None if nothing was."""
    path, content = postprocess_path(checkpoint, structure), "a choice of threshold and components"
    values = read_sidecar(path, checkpoint, content, LIMITS)
    return Postprocess(**values) if values else None
