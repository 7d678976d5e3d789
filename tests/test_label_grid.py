"""Grids of labels: each difference has its code, and crops are placed on the image's grid."""

import nibabel as nib
import numpy as np
import pytest

from pancseg.errors import Refused
from pancseg.geometry import oriented_like
from pancseg.intake.checks import check_grid
from pancseg.intake.volume_files import uncropped

GRID = np.array([[-0.8, 0, 0, 90.0], [0, -0.8, 0, 70.0], [0, 0, 2.5, -300.0], [0, 0, 0, 1]])
SHAPE = (50, 40, 30)
Move = tuple[float, float, float]


def on(affine: np.ndarray, shape: tuple[int, ...] = SHAPE) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.zeros(shape, np.uint8), affine)


def moved(mm: Move) -> np.ndarray:
    affine = GRID.copy()
    affine[:3, 3] += mm
    return affine


def problem(label: nib.Nifti1Image) -> str:
    with pytest.raises(Refused) as refused:
        check_grid(on(GRID), label)
    return str(refused.value)


@pytest.mark.parametrize("affine", [GRID, moved((0.07, 0, 0)), GRID @ np.diag([1, 1, 1.0005, 1])])
def test_grids_within_a_tenth_of_a_voxel_are_equal(affine: np.ndarray) -> None:
    check_grid(on(GRID), on(affine))


def test_another_size_is_reported_with_both() -> None:
    assert problem(on(GRID, (50, 40, 31))) == (
        "label_size: label has 50 x 40 x 31 voxels of 0.800 x 0.800 x 2.500 mm, LPS; "
        "image has 50 x 40 x 30 voxels of 0.800 x 0.800 x 2.500 mm, LPS"
    )


def test_another_spacing_is_reported_in_mm() -> None:
    assert problem(on(GRID @ np.diag([1, 1, 2, 1]))) == (
        "label_spacing: label has voxels of 0.8 x 0.8 x 5 mm, image of 0.8 x 0.8 x 2.5 mm"
    )


def test_another_direction_is_reported_in_degrees() -> None:
    angle = np.radians(12)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert problem(on(turn @ GRID)) == (
        "label_direction: label's axes are 12.00 degrees off the image's"
    )


@pytest.mark.parametrize(
    ("mm", "axes"),
    [
        ((49 * 0.8, 0, 0), "left-right"),
        ((0, 39 * 0.8, 0), "back-front"),
        ((0, 0, -29 * 2.5), "feet-head"),
        ((49 * 0.8, 39 * 0.8, 0), "left-right and back-front"),
    ],
)
def test_a_wrong_sign_in_the_affine_is_reported_with_its_axis(mm: Move, axes: str) -> None:
    found = problem(on(moved(mm)))
    assert found.startswith(f"label_flipped: label begins where the image ends, {axes}: ")


def test_an_affine_written_in_lps_is_flipped() -> None:
    label = on(np.diag([-1, -1, 1, 1]) @ GRID)
    assert problem(oriented_like(label, on(GRID))).startswith(
        "label_flipped: label is mirrored at the scanner's origin, left-right and back-front: "
    )


@pytest.mark.parametrize("mm", [(49 * 0.8, 3, 0), (-140.8, 5, 0), (20 * 0.8, 0, 0)])
def test_another_displacement_is_a_shift(mm: Move) -> None:
    assert problem(on(moved(mm))).startswith(f"label_shifted: label lies ({mm[0]:.2f}, ")


def test_a_shift_is_reported_in_mm_and_in_voxels() -> None:
    assert problem(on(moved((1.6, 0, -5)))) == (
        "label_shifted: label lies (1.60, 0.00, -5.00) mm to the right, front and head of the "
        "image, (-2.00, 0.00, -2.00) voxels"
    )


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SLA"])
def test_a_crop_in_any_orientation_is_placed_on_its_voxels(codes: str) -> None:
    whole = on(GRID)
    whole.dataobj[10:14, 20:22, 29] = 2
    whole.dataobj[10, 20, 28] = 1
    crop = whole.slicer[9:15, 20:23, 28:30]
    axes = nib.orientations.axcodes2ornt(tuple(codes))
    turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(GRID), axes)
    padded = uncropped(crop.as_reoriented(turn), whole)
    np.testing.assert_array_equal(padded.dataobj, whole.dataobj)
    check_grid(whole, padded)


@pytest.mark.parametrize("mm", [(0.4, 0, 0), (0, 0, -2.5), (-80, 0, 0)])
def test_a_crop_off_the_grid_or_outside_is_left_alone(mm: Move) -> None:
    crop = on(moved(mm), (20, 20, 20))
    assert uncropped(crop, on(GRID)) is crop
