"""Checks of a case: the flags of ``intake.csv``, and the grid of a label against its image's."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pancseg.data.manifest import Case, same_person
from pancseg.errors import PancsegError, Refused
from pancseg.geometry import bounding_box, describe_grid, same_grid, second_component_voxels
from pancseg.structures import IGNORED, Structure, region_mask

Voxels = NDArray[Any]
INFO_FLAGS = ("unlabelled", "phantom")  # properties of a data set, not problems of a case
CROSS_CASE_FLAGS = ("duplicate_pixels", "two_names", "spacing_outlier")  # follow from other cases
FLAGS = {  # meaning and advice of each flag, in the order in which flags are written
    "hu_not_applied": "No fat and no air: values are not HU; convert the series again from DICOM.",
    "hu_windowed": "Values were clipped to a display window; convert it again from DICOM.",
    "hu_implausible": "Some values cannot be HU; check slope, intercept and padding.",
    "rescale_type": "RescaleType is not HU, as in iodine maps; leave out what is not HU.",
    "slice_order": "Neighbouring slices seem swapped, or the patient moved; view the slices.",
    "spacing_outlier": "Spacing differs from most cases: another protocol, or a wrong header.",
    "repaired": "The image was interpolated to a regular grid; check the slices beside gaps.",
    "damaged_file": "A file beside the slices cannot be read; no slice is missing.",
    "duplicate_files": "There are identical copies of slices; each was counted once.",
    "sform_qform": "The NIfTI's sform and qform disagree; sform was used: check the orientation.",
    "duplicate_pixels": "Another case has the same voxels; only the first is trained on or scored.",
    "two_names": "Patients share a study or PatientID; splits treat them as the same person.",
    "unlabelled": "There is no label: the case can be segmented, not trained on or scored.",
    "label_empty": "The label has no voxel; check the choice of labels.",
    "label_values": "Some values were neither chosen nor declared; choose with labels=[...].",
    "ignore_label": "Some voxels have nnU-Net's ignore label: they neither train nor count.",
    "label_placed_by_axes": "The scan's origin replaced the label's; check the label's outline.",
    "label_outside_body": "Part of the label lies in air: it is shifted, mirrored or another's.",
    # with several structures written as label_volume:<structure>
    "label_volume": "The volume is implausible for the structure; check what was labelled.",
    "label_pieces": "The label has a second large component; check whether it is a mistake.",
    "label_cut": "The label touches the first or last slice; the organ may be cut off.",
    "label_gaps": "Slices without label lie between labelled ones; check for forgotten slices.",
    "contour_gaps": "Slices without contour lie between others; check for forgotten slices.",
    "contour_type_assumed": "Contours without a type were read as closed; check the outline.",
    "phantom": "The scan is synthetic: results say nothing about patients.",
}

MIN_VOXELS = 1000  # of a sample; fewer are not judged
SAMPLED_PIXELS, MAX_STEP = 64, 4  # along an axis of a sampled slice, at least; of the sampling

# HU limits, far from the values of real scans on either side
FAT_BELOW = -30  # fat, lung and air; every CT has some
SOFT_TISSUE_HU = (-150, 250)
BODY_ABOVE = -300  # lung and air lie below; fat and partial volumes above
AIR_RANGE_HU = (-1200, -700)
WINDOW_HU = (-900, 1000)  # clipping beyond, as to -1024..3071, loses nothing
CONTENT_HU = (-1000, 1000)  # padding and metal do not help to compare slices

# shares of sampled voxels
MIN_FAT = 0.01
MIN_SOFT_TISSUE = 0.02  # real scans from 0.07, padding included
MIN_DARK, MIN_AIR_OF_DARK = 0.05, 0.05
MIN_CLIPPED, MIN_PADDING = (0.01, 0.001), 0.01  # at exactly the lowest and the highest value

SWAP_RATIO = 1.07  # slices in order: at most 0.97; pure noise: 1.02; swapped: from 1.1
ALTERNATING_SHARE = 0.8  # of slices more similar to the second next; every pair swapped: 0.5
MIN_CASES_FOR_MEDIAN = 5
MIN_FLIPPED_STEPS = 3  # between voxels; along a shorter axis, a flip is also a small shift


@dataclass(frozen=True)
class Checks:
    """Thresholds of flags; PancsegError for an unknown flag or a reversed range."""

    refuse: Sequence[str] = ()  # flags that refuse a case
    hu_range: Sequence[float] = (-4100, 32767)  # plausible, wide enough for padding and metal
    volume_ml: Sequence[float] | None = None  # replaces that of the only structure
    outside_share: float = 0.1  # of the label's voxels that may lie in air
    piece_share: float = 0.1  # of an organ's voxels that a second component may have
    spacing_factor: float = 2.5  # ratio to the median spacing from which a spacing is flagged

    def __post_init__(self) -> None:
        if unknown := ", ".join(name for name in self.refuse if name not in FLAGS):
            raise PancsegError(f"checks.refuse names {unknown}; flags are {', '.join(FLAGS)}")
        for name, limits in (("hu_range", self.hu_range), ("volume_ml", self.volume_ml)):
            if limits is not None and not (len(limits) == 2 and limits[0] < limits[1]):
                raise PancsegError(f"checks.{name}={list(limits)}: expected two, the lower first")

    def refuse_flagged(self, flags: Iterable[str], found: str) -> None:
        """Refuse a case for the first of its flags that ``refuse`` names."""
        for code in (flag.partition(":")[0] for flag in flags):
            if code in self.refuse:
                raise Refused(code, f"{found}, and checks.refuse names it")


def sort_flags(flags: Iterable[str]) -> list[str]:
    """Flags without repetition, in the order of ``FLAGS``."""
    names = list(FLAGS)
    return sorted(set(flags), key=lambda flag: (names.index(flag.partition(":")[0]), flag))


def check_image(hu: Voxels) -> None:
    """Refuse an image of exactly two values, ``looks_like_mask``."""
    for values in (sample_slices(hu), hu):  # the sample is enough for nearly every image
        low, high = values.min(), values.max()
        if ((values > low) & (values < high)).any():
            return
    if low < high:
        advice = "if it is a mask, give its folder as source.labels, not as source.images"
        raise Refused("looks_like_mask", f"two values only, {low:g} and {high:g}; {advice}")


def voxel_flags(
    hu: Voxels,
    codes: Voxels | None,
    spacing_mm: Sequence[float],
    checks: Checks,
    structures: Sequence[Structure],
) -> list[str]:
    """Flags that follow from voxels ``(columns, rows, slices)``, slice 0 nearest the feet."""
    sample = sample_slices(hu)
    flags = {hu_flag(hu, sample, checks.hu_range)}
    if has_swapped_slices(sample):
        flags.add("slice_order")
    if codes is not None:
        flags |= label_flags(hu, codes, float(np.prod(spacing_mm)) / 1000, checks, structures)
    return sort_flags(flags - {""})


def sample_slices(hu: Voxels) -> Voxels:
    """Every fourth column and row of all slices, ``(slices, pixels)``; more of small slices."""
    step = min(MAX_STEP, max(1, min(hu.shape[:2]) // SAMPLED_PIXELS))
    return np.moveaxis(hu[::step, ::step], 2, 0).reshape(hu.shape[2], -1)


def hu_flag(hu: Voxels, sample: Voxels, hu_range: Sequence[float]) -> str:
    """The first flag that applies to the values, or an empty text: a windowed image lacks air."""
    low, high = hu.min(), hu.max()
    if sample.size < MIN_VOXELS:
        return ""
    # clipping at 0 is left to the next test: unsigned stored values start there
    cut_low = WINDOW_HU[0] < low < 0 and np.mean(sample == low) > MIN_CLIPPED[0]
    cut_high = high < WINDOW_HU[1] and np.mean(sample == high) > MIN_CLIPPED[1]
    if cut_low or cut_high:
        return "hu_windowed"
    if np.mean(sample < FAT_BELOW) < MIN_FAT:
        return "hu_not_applied"
    soft_tissue = (sample > SOFT_TISSUE_HU[0]) & (sample < SOFT_TISSUE_HU[1])
    # a wrong slope displaces air most; padding of one value is not air
    dark = sample[(sample < BODY_ABOVE) & (sample > low)]
    air = (dark > AIR_RANGE_HU[0]) & (dark < AIR_RANGE_HU[1])
    if low < AIR_RANGE_HU[0] and np.mean(sample == low) > MIN_PADDING:
        low = hu.min(where=hu > low, initial=high)
    if (
        not hu_range[0] <= low <= high <= hu_range[1]
        or np.mean(soft_tissue) < MIN_SOFT_TISSUE
        or (dark.size >= MIN_DARK * sample.size and air.sum() < MIN_AIR_OF_DARK * dark.size)
    ):
        return "hu_implausible"
    return ""


def has_swapped_slices(sample: Voxels) -> bool:
    """Whether two neighbouring slices seem swapped, in a sample ``(slices, pixels)``."""
    # of slices stored as a, c, b, d both a and d are more similar to the farther of the two; both
    # sides are required, because a single unusual slice has that effect on one side
    if sample.shape[0] < 4 or sample.shape[1] < MIN_VOXELS:
        return False
    contents = np.clip(sample, *CONTENT_HU)
    if np.issubdtype(contents.dtype, np.integer):
        contents = contents.astype(np.int16)  # holds differences of clipped values

    def mean_differences(distance: int) -> NDArray[np.float64]:
        pairs = zip(contents[:-distance], contents[distance:], strict=True)
        return np.array([np.abs(a - b).mean(dtype=np.float64) for a, b in pairs])

    to_next = mean_differences(1)
    to_second = SWAP_RATIO * np.maximum(mean_differences(2), 1e-3)  # HU, for rounding
    after, before = to_next[:-1] > to_second, to_next[1:] > to_second
    if np.mean(after) > ALTERNATING_SHARE:
        return False  # every second slice is similar, as with a flying focal spot
    # the first and last pair have one side only: the outer neighbour must differ as well
    first = before[0] and to_next[1] > SWAP_RATIO * to_next[0]
    last = after[-1] and to_next[-2] > SWAP_RATIO * to_next[-1]
    return bool((after[:-1] & before[1:]).any() or first or last)


def label_flags(
    hu: Voxels, codes: Voxels, voxel_ml: float, checks: Checks, structures: Sequence[Structure]
) -> set[str]:
    """Flags of a label map."""
    labelled = (codes != 0) & (codes != IGNORED)
    box = bounding_box(labelled)
    inner, flags = codes[box], set()
    if not inner.any():
        return {"label_empty"}
    if np.mean(hu[box][labelled[box]] < BODY_ABOVE) > checks.outside_share:
        flags.add("label_outside_body")
    only = len(structures) == 1
    for structure in structures:
        mask = region_mask(inner, structure)
        voxels = int(mask.sum())
        low, high = checks.volume_ml if only and checks.volume_ml else structure.volume_ml
        if not low <= voxels * voxel_ml <= high:
            flags.add("label_volume" if only else f"label_volume:{structure.name}")
        if structure.kind == "organ" and voxels:
            slices = box[2].start + np.flatnonzero(mask.any(axis=(0, 1)))
            if second_component_voxels(mask) > checks.piece_share * voxels:
                flags.add("label_pieces")
            if slices[0] == 0 or slices[-1] == codes.shape[2] - 1:
                flags.add("label_cut")
            if len(slices) <= slices[-1] - slices[0]:
                flags.add("label_gaps")
    return flags


def cross_case_flags(
    cases: Sequence[Case], spacing_factor: float
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Duplicates, each with the first case of the same voxels; and flags of cases by comparison."""
    first: dict[str, str] = {}
    copies = {
        case.name: first.setdefault(case.voxel_hash or case.name, case.name) for case in cases
    }
    copies = {case: original for case, original in copies.items() if case != original}
    flags: dict[str, list[str]] = defaultdict(list)
    for name in {*copies, *copies.values()}:
        flags[name].append("duplicate_pixels")
    person_of = same_person(cases)
    shared = {person for patient, person in person_of.items() if patient != person}
    for case in cases:
        if person_of[case.patient] in shared:
            flags[case.name].append("two_names")
    if len(cases) >= MIN_CASES_FOR_MEDIAN:
        spacing_mm = np.array([case.spacing_mm for case in cases])
        ratios = np.abs(np.log(spacing_mm / np.median(spacing_mm, axis=0))).max(axis=1)
        for case, is_far in zip(cases, ratios > np.log(spacing_factor), strict=True):
            flags[case.name] += ["spacing_outlier"] * bool(is_far)
    return copies, {name: own for name, own in flags.items() if own}


def check_grid(image: nib.Nifti1Image, label: nib.Nifti1Image) -> None:
    """Refuse a label, oriented like its image, that is off by a tenth of a voxel or more."""
    affine, other, shape = image.affine, label.affine, image.shape
    if shape != label.shape:
        own, expected = describe_grid(label.shape, other), describe_grid(shape, affine)
        raise Refused("label_size", f"label has {own}; image has {expected}")
    if same_grid(shape, affine, shape, other):
        return
    spacing_mm, other_mm = (nib.affines.voxel_sizes(a) for a in (affine, other))
    tolerance_mm, steps = spacing_mm.min() / 10, np.array(shape) - 1
    if (np.abs(other_mm - spacing_mm) * steps > tolerance_mm).any():
        own, expected = (" x ".join(f"{v:.4g}" for v in mm) for mm in (other_mm, spacing_mm))
        raise Refused("label_spacing", f"label has voxels of {own} mm, image of {expected} mm")
    axes, other_axes = affine[:3, :3] / spacing_mm, other[:3, :3] / other_mm
    if (np.linalg.norm(other_axes - axes, axis=0) * spacing_mm * steps > tolerance_mm).any():
        degrees = np.degrees(np.arccos(np.clip((axes * other_axes).sum(axis=0), -1, 1))).max()
        raise Refused("label_direction", f"label's axes are {degrees:.2f} degrees off the image's")
    centre_mm = nib.affines.apply_affine(affine, steps / 2)
    shift_mm = nib.affines.apply_affine(other - affine, steps / 2)
    shift_voxels = np.linalg.solve(affine[:3, :3], shift_mm)
    # a label with a wrong sign in an axis was reoriented, and now begins where the image ends
    by_extent = (np.abs(np.abs(shift_voxels) - steps) <= 1) & (steps >= MIN_FLIPPED_STEPS)
    # with a wrong sign in its origin too (LPS written as RAS), its centre is the image's, negated
    displaced = np.abs(shift_mm) > tolerance_mm
    negated = np.abs(2 * centre_mm + shift_mm) <= tolerance_mm
    if by_extent.any() and (np.abs(shift_voxels[~by_extent]) <= 0.1).all():
        flipped, how = np.abs(axes[:, by_extent]).argmax(axis=0), "begins where the image ends"
    elif displaced.any() and negated[displaced].all():
        flipped, how = np.flatnonzero(displaced), "is mirrored at the scanner's origin"
    else:
        mm, voxels = (", ".join(f"{v + 0.0:.2f}" for v in s) for s in (shift_mm, shift_voxels))
        where = f"({mm}) mm to the right, front and head of the image, ({voxels}) voxels"
        raise Refused("label_shifted", f"label lies {where}")
    names = " and ".join(("left-right", "back-front", "feet-head")[axis] for axis in flipped)
    reason = "its affine has wrong signs, as where LPS is written as RAS; export it again"
    raise Refused("label_flipped", f"label {how}, {names}: {reason}")
