"""What a person should look at in a case: the flags of ``intake.csv`` and how they are raised."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from pancseg.errors import PancsegError
from pancseg.intake.checks.image_checks import hu_flag, sampled, slices_look_swapped
from pancseg.intake.checks.label_checks import label_flags

FACTS = ("unlabelled", "phantom")  # what somebody chose: of a whole folder, not of one case
FLAGS = {
    "hu_not_applied": "Neither fat nor air is there: slope and intercept were never applied, or "
    "this is no CT; convert it again from DICOM.",
    "hu_windowed": "Values were cut to a display window, which cannot be undone; convert it again "
    "from DICOM.",
    "hu_implausible": "Values cannot be HU: soft tissue or air does not lie where it must; look at "
    "slope, intercept and padding.",
    "slice_order": "Neighbouring slices seem swapped, or the patient moved between them; scroll "
    "through the case from feet to head.",
    "spacing_outlier": "Spacing differs from most other cases; see whether it is another protocol "
    "or a wrong header.",
    "repaired": "The image was interpolated onto a regular grid; look at the slices beside gaps.",
    "duplicate_pixels": "Another case has the very same pixels; only the first is trained on or "
    "scored, so that nothing leaks between splits.",
    "two_names": "One study or PatientID goes by two patients' names; they are dealt to a split as "
    "one person, but see which is right.",
    "unlabelled": "There is no label; the case can be segmented but neither trained on nor scored.",
    "label_empty": "The label has no voxel; see whether the organ was removed or the choice of "
    "labels is wrong.",
    "label_values": "The label holds values that nobody chose or declared; name those that are the "
    "organ with labels=[...].",
    "label_placed_by_axes": "The label's origin is not the scan's, though size, spacing and axes "
    "agree; it was put on the scan's grid: look at its outline.",
    "label_outside_body": "Part of the label lies in air: it belongs to another scan, or is "
    "shifted or mirrored.",
    "label_volume": "The label is smaller or larger than a pancreas; see whether it is another "
    "organ, or only a part.",
    "label_pieces": "The label has several large pieces; see whether one of them is a slip of the "
    "pen.",
    "label_cut": "The label touches the first or last slice; the organ may be cut off.",
    "label_gaps": "Slices without label lie between labelled ones; see whether some were "
    "forgotten.",
    "contour_gaps": "Contours are missing on slices between others; see whether some were "
    "forgotten.",
    "phantom": "This is no patient: results on it say nothing about patients.",
}
"""What each flag means and what to do, in the order in which flags are written."""


@dataclass(frozen=True)
class Checks:
    """When a case is flagged, and which flags are reason enough to refuse it.

    Attributes:
        refuse: Flags that refuse a case.
        hu_range: Lowest and highest plausible value, HU; wide enough for padding and metal.
        volume_ml: Smallest and largest plausible label, ml.
        outside_share: Of the label's voxels that may lie in air before it is flagged, 0 to 1.
        piece_share: Of the label's voxels that a second piece may have, 0 to 1.
        spacing_factor: A spacing this many times the root's median, or that part of it, is told.

    Raises:
        PancsegError: If a name in ``refuse`` is no flag, or a range is upside down.
    """

    refuse: tuple[str, ...] = ()
    hu_range: tuple[float, float] = (-4100, 32767)
    volume_ml: tuple[float, float] = (15, 300)
    outside_share: float = 0.1
    piece_share: float = 0.1
    spacing_factor: float = 2.5

    def __post_init__(self) -> None:
        unknown = [name for name in self.refuse if name not in FLAGS]
        if unknown:
            raise PancsegError(
                f"checks.refuse names {', '.join(unknown)}, which no case is flagged with; "
                f"flags are {', '.join(FLAGS)}"
            )
        for name, (low, high) in (("hu_range", self.hu_range), ("volume_ml", self.volume_ml)):
            if not low < high:
                raise PancsegError(
                    f"checks.{name} goes from {low} to {high}; give the lower end first"
                )


def flags_of(
    hu: NDArray[Any],
    mask: NDArray[Any] | None,
    spacing_mm: tuple[float, float, float],
    checks: Checks,
) -> list[str]:
    """Flags that the voxels of a case give reason for; they never change the voxels.

    Args:
        hu: ``(columns, rows, slices)``, HU, slice 0 nearest the feet.
        mask: The organ on the same grid, uint8, 0 and 1; None where there is no label.
        spacing_mm: Voxel size along each axis.
        checks: When to flag.

    Returns:
        Flags in the order of ``FLAGS``.
    """
    few = sampled(hu)
    flags = {hu_flag(few, float(hu.min()), float(hu.max()), checks.hu_range)}
    if slices_look_swapped(few):
        flags.add("slice_order")
    if mask is not None:
        flags |= label_flags(
            hu,
            mask,
            spacing_mm,
            volume_ml=checks.volume_ml,
            outside_share=checks.outside_share,
            piece_share=checks.piece_share,
        )
    return in_order(flags - {""})


def in_order(flags: Iterable[str]) -> list[str]:
    """Flags, each once, in the order of ``FLAGS``.

    >>> in_order(["phantom", "label_empty", "phantom"])
    ['label_empty', 'phantom']
    """
    return sorted(set(flags), key=list(FLAGS).index)
