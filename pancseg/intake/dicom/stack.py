"""Stacks: planes ordered along their normal, checked to be one regular grid or put on one."""

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from highdicom.spatial import create_affine_matrix_from_attributes
from numpy.typing import NDArray

from pancseg.errors import Refused
from pancseg.geometry import Affine, slices_from_feet
from pancseg.intake.dicom.planes import Plane
from pancseg.intake.dicom.resampling import between_planes, straightened

FLIP_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
FEWEST_SLICES = 3  # two have one gap, which nothing confirms
GAP_TOLERANCE = 0.02  # of the spacing; positions are rounded in headers
MISSING = 1.5  # times the spacing: a gap this wide lacks a slice
WIDEST_REPAIR = 4.5  # times the spacing: three slices in a row may be interpolated, no more
DRIFT_TOLERANCE = 0.1  # of the spacing: what rounded gaps may add up to
LEAN_TOLERANCE = 1.0  # pixels, and mm, that the last slice may lie beside the first
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Repair:
    """What is put on a regular orthogonal grid instead of being refused."""

    gaps: bool = False
    tilt: bool = False


@dataclass(frozen=True)
class Stack:
    """Planes of one series in order along their normal, and the regular grid they give.

    Attributes:
        planes: In order; slice k of a stored volume is ``planes[k]``.
        normal: Unit vector, LPS.
        offsets_mm: ``(slices,)``, along the normal, from the first plane.
        shifts_mm: ``(slices, 2)``, of each plane's corner along rows and along columns, where the
            gantry was tilted; zero otherwise.
        step_mm: From slice to slice of the regular grid.
        repairs: What was repaired, for the manifest.
        is_uneven: Whether the planes lie between the steps of the grid and are interpolated.
    """

    planes: tuple[Plane, ...]
    normal: Floats
    offsets_mm: Floats
    shifts_mm: Floats
    step_mm: float
    repairs: tuple[str, ...] = ()
    is_uneven: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows and slices as stored."""
        return self.planes[0].columns, self.planes[0].rows, len(self.planes)

    @property
    def corner_mm(self) -> Floats:
        """Centre of the first stored voxel, LPS."""
        return np.array(self.planes[0].position_mm)

    def to_image(self, stored: NDArray[Any], *, linear: bool, fill: float) -> nib.Nifti1Image:
        """Put a stored volume on the regular grid, slice 0 nearest the feet.

        Args:
            stored: ``(columns, rows, slices)`` in the order of the planes.
            linear: Interpolate linearly (HU) or take the nearest (masks), where repaired.
            fill: Value outside of what was scanned.
        """
        corner = self.corner_mm
        spacing_mm = self.planes[0].spacing_mm
        if self.shifts_mm.any():
            stored, moved_mm = straightened(
                stored, self.shifts_mm, spacing_mm, linear=linear, fill=fill
            )
            row, column = np.reshape(self.planes[0].orientation, (2, 3))
            corner = corner + moved_mm[0] * row + moved_mm[1] * column
        if self.is_uneven:
            stored = between_planes(stored, self.offsets_mm / self.step_mm, linear=linear)
        return slices_from_feet(nib.Nifti1Image(stored, self.affine_at(corner)))

    def affine_at(self, corner_mm: Floats) -> Affine:
        """Affine of the regular grid, RAS, with its first voxel at an LPS position."""
        affine = create_affine_matrix_from_attributes(
            image_position=corner_mm.tolist(),
            image_orientation=self.planes[0].orientation,
            pixel_spacing=self.planes[0].spacing_mm,
            spacing_between_slices=self.step_mm,
            index_convention="RD",
        )
        return FLIP_LPS_TO_RAS @ affine


def stack(planes: list[Plane], repair: Repair) -> Stack:
    """Order planes along their normal and check that they form one regular stack.

    Raises:
        Refused: If they do not, and the repairs allowed do not mend it.
    """
    check_alike(planes)
    first = planes[0]
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)  # headers hold few decimals
    positions = np.array([plane.position_mm for plane in planes])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    offsets_mm = (positions - positions[0]) @ normal
    step_mm, gaps_repaired = regular_step(np.diff(offsets_mm), repair.gaps)
    tilt_degrees, beside_mm = lean(positions, normal, max(GAP_TOLERANCE * step_mm, 0.1))
    shifts_mm, repairs = np.zeros((len(planes), 2)), []
    if beside_mm > LEAN_TOLERANCE * max(1.0, *first.spacing_mm):
        if not repair.tilt:
            raise Refused(
                "gantry_tilt",
                f"slices are stacked at {tilt_degrees:.1f} degrees to their normal",
            )
        shifts_mm = (positions - positions[0]) @ np.array([row, column]).T
        repairs.append(f"tilt of {tilt_degrees:.1f} degrees")
    if gaps_repaired:
        repairs.append(gaps_repaired)
    ordered = tuple(planes[i] for i in order)
    is_uneven = bool(gaps_repaired)
    return Stack(ordered, normal, offsets_mm, shifts_mm, step_mm, tuple(repairs), is_uneven)


def check_alike(planes: list[Plane]) -> None:
    """Check that planes have one size, spacing, orientation and frame of reference.

    Raises:
        Refused: With the values found.
    """
    if len(planes) < FEWEST_SLICES:
        raise Refused("too_few_slices", f"{len(planes)} slices, expected at least {FEWEST_SLICES}")
    sizes = sorted({(plane.rows, plane.columns) for plane in planes})
    if len(sizes) > 1:
        raise Refused("mixed_size", f"rows and columns are {sizes}, expected one size")
    for keyword, code, values in (
        ("PixelSpacing", "mixed_spacing", [plane.spacing_mm for plane in planes]),
        ("ImageOrientationPatient", "mixed_orientation", [plane.orientation for plane in planes]),
    ):
        low, high = np.min(values, axis=0), np.max(values, axis=0)
        if (high - low).max() > 1e-3:
            raise Refused(code, f"{keyword} goes from {low.tolist()} to {high.tolist()}")
    frames = {plane.frame_of_reference_uid for plane in planes}
    if len(frames) > 1:
        raise Refused(
            "mixed_frame_of_reference", f"{len(frames)} FrameOfReferenceUIDs, expected one"
        )


def regular_step(gaps_mm: Floats, may_repair: bool) -> tuple[float, str]:
    """Distance between neighbouring slices, and what has to be repaired to have one.

    Raises:
        Refused: If slices share a position, one is missing or gaps are uneven.
    """
    step_mm = float(np.median(gaps_mm))
    shared = int((gaps_mm < 1e-3).sum())
    if shared:
        raise Refused("same_position", f"{shared + 1} slices or more share a position")
    wide = np.flatnonzero(gaps_mm > MISSING * step_mm)
    uneven_mm = float(np.abs(gaps_mm - step_mm).max())
    mean_mm = float(gaps_mm.mean())
    drift_mm = float(np.abs(np.cumsum(gaps_mm - mean_mm)).max())
    if uneven_mm <= max(GAP_TOLERANCE * step_mm, 0.01) and drift_mm <= DRIFT_TOLERANCE * step_mm:
        return mean_mm, ""
    if may_repair and gaps_mm.max() <= WIDEST_REPAIR * step_mm:
        span = f"{gaps_mm.min():.2f} to {gaps_mm.max():.2f} mm"
        return step_mm, f"gaps of {span}, now {step_mm:.2f} mm"
    if len(wide) and gaps_mm.min() > step_mm / MISSING:
        gaps = "1 gap" if len(wide) == 1 else f"{len(wide)} gaps, the first"
        raise Refused(
            "missing_slice",
            f"{gaps} of {gaps_mm[wide[0]]:.1f} mm at slice {wide[0] + 1}, "
            f"spacing is {step_mm:.1f} mm",
        )
    raise Refused("uneven_gaps", f"gaps go from {gaps_mm.min():.2f} to {gaps_mm.max():.2f} mm")


def lean(positions: Floats, normal: Floats, tolerance_mm: float) -> tuple[float, float]:
    """Angle between the stack and its normal, degrees, and how far beside the last slice lies, mm.

    Args:
        positions: ``(slices, 3)`` in order along the normal, mm.
        normal: Unit vector.
        tolerance_mm: How far a slice may lie beside the straight line through the stack.

    Raises:
        Refused: If slices do not lie on one line.
    """
    leaning = positions[-1] - positions[0]
    depth_mm = (positions - positions[0]) @ normal
    on_line = positions[0] + np.outer(depth_mm / depth_mm[-1], leaning)
    beside_mm = float(np.linalg.norm(positions - on_line, axis=1).max())
    if beside_mm > tolerance_mm:
        raise Refused("shifted_slice", f"a slice lies {beside_mm:.1f} mm beside the stack")
    aside_mm = float(np.linalg.norm(leaning - depth_mm[-1] * normal))
    return float(np.degrees(np.arctan2(aside_mm, depth_mm[-1]))), aside_mm
