"""From a probability to a mask, and the file beside a checkpoint that says how."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pancseg.errors import PancsegError
from pancseg.geometry import CONNECTIVITY_26, bounding_box
from pancseg.inference.beside import keep, kept

AUTO = "auto"


@dataclass(frozen=True)
class Postprocess:
    """How a probability becomes a mask.

    Attributes:
        threshold: Voxels above it are pancreas.
        largest_component: Whether only the largest piece is kept.
    """

    threshold: float = 0.5
    largest_component: bool = False

    def mask_of(self, probability: NDArray[np.float32]) -> NDArray[np.bool_]:
        """The mask, of the probability's shape."""
        return self.finished(probability > self.threshold)

    def finished(self, above: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The mask, of where the probability is above the threshold."""
        return largest_component(above) if self.largest_component else above

    def describe(self) -> str:
        """A few words.

        >>> Postprocess(0.45, True).describe()
        'threshold 0.45, largest component alone'
        """
        kept = "largest component alone" if self.largest_component else "all components"
        return f"threshold {self.threshold:g}, {kept}"


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest piece of a mask; voxels that share a corner are of one piece.

    >>> largest_component(np.array([[[1, 0, 1, 1]]], bool)).astype(int).tolist()
    [[[0, 0, 1, 1]]]
    """
    box = bounding_box(mask)
    labels, pieces = ndimage.label(mask[box], CONNECTIVITY_26)
    if pieces < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = np.zeros_like(mask)
    kept[box] = labels == sizes.argmax()
    return kept


@dataclass(frozen=True)
class Wanted:
    """What the configuration asks for.

    Attributes:
        threshold: A number, ``auto`` (the best on the validation patients), or None (as was
            chosen before, else 0.5).
        largest_component: True, False, ``auto``, or None (as was chosen before, else False).
    """

    threshold: float | str | None = None
    largest_component: bool | str | None = None

    def __post_init__(self) -> None:
        t, largest = self.threshold, self.largest_component
        number = isinstance(t, int | float) and not isinstance(t, bool) and 0 < t < 1
        if not (t in (None, AUTO) or number):
            raise PancsegError(f"postprocess.threshold={t}: expected auto, or a number inside 0..1")
        if largest not in (None, AUTO, True, False):
            raise PancsegError(
                f"postprocess.largest_component={largest}: expected auto, true or false"
            )

    @property
    def asks_validation(self) -> bool:
        """Whether something has to be chosen on validation patients."""
        return AUTO in (self.threshold, self.largest_component)

    @property
    def is_given(self) -> bool:
        """Whether something is set by hand."""
        return self.threshold not in (None, AUTO) or self.largest_component in (True, False)

    def chosen_alone(self, chosen: Postprocess, kept: Postprocess) -> Postprocess:
        """What is to be kept: what was chosen, beside it what was kept before, nothing given."""
        return Postprocess(
            chosen.threshold if self.threshold == AUTO else kept.threshold,
            chosen.largest_component if self.largest_component == AUTO else kept.largest_component,
        )

    def over(self, recorded: Postprocess) -> Postprocess:
        """What was recorded, with the values that are given instead."""
        t, largest = self.threshold, self.largest_component
        return Postprocess(
            recorded.threshold if t in (None, AUTO) else float(t),
            recorded.largest_component if largest in (None, AUTO) else bool(largest),
        )


def side_file(checkpoint: Path) -> Path:
    """Where the choice for a checkpoint stands: ``best.postprocess.json`` beside it."""
    return checkpoint.with_suffix(".postprocess.json")


def record(checkpoint: Path, chosen: Postprocess, about: dict[str, Any]) -> None:
    """Write a choice beside its checkpoint, with what it was chosen on."""
    keep(side_file(checkpoint), checkpoint, asdict(chosen), about)


def recorded(checkpoint: Path) -> Postprocess | None:
    """What was chosen for a checkpoint; None if nothing was, or only for earlier weights.

    Raises:
        PancsegError: If the file beside it is no such choice.
    """
    path, what = side_file(checkpoint), "a choice of threshold and components"
    content = kept(path, checkpoint, is_choice, what)
    if content is None:
        return None
    return Postprocess(float(content["threshold"]), content["largest_component"])


def is_choice(content: dict[str, Any]) -> bool:
    """Whether a side file has what is needed of it."""
    return (
        isinstance(content.get("threshold"), int | float)
        and 0 < content["threshold"] < 1
        and isinstance(content.get("largest_component"), bool)
    )
